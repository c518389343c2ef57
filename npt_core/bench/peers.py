"""The same prompts in other engines: transformers' two ways, and llama.cpp."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation import BaseStreamer

from npt_core.bench.figures import Figures, Timeline, rounds
from npt_core.bench.llama_cpp_peer import LlamaCpp
from npt_core.bench.load import NEW_TOKENS, POSITIONS, prompts

_BATCH_TOKENS = 512


class _Stopwatch(BaseStreamer):
    """Marks what `generate` gives: one token of each row, or several of its only one; first the prompt."""

    def __init__(self) -> None:
        self.timeline = Timeline()
        self._prompt_seen = False

    def put(self, value: Any) -> None:
        tokens = value.shape[1] if value.dim() == 2 else 1
        for _ in range(tokens if self._prompt_seen else 0):
            self.timeline.mark()
        self._prompt_seen = True

    def end(self) -> None:
        pass


def measure_generate(model: Any, streams: int, seconds: float, drafts: int | None = None) -> Figures:
    """One call of `generate` for each batch of `streams` prompts of equal length.

    With `drafts`, by prompt lookup of so many tokens, which `generate` does for one stream alone.
    """
    config = _greedy()
    config.prompt_lookup_num_tokens = drafts

    def answered(seed: int) -> list[Timeline]:
        ids = torch.tensor(prompts(streams, model.config.vocab_size, seed), device=model.device)
        watch = _Stopwatch()
        mask = torch.ones_like(ids)
        model.generate(ids, attention_mask=mask, generation_config=config, streamer=watch)
        return [watch.timeline] * streams

    return rounds(streams, seconds, answered)


def measure_continuous(model: Any, streams: int, seconds: float) -> Figures:
    """Continuous batching over paged attention; one manager for all rounds.

    Its cache is sized for the load: left to itself it takes most of the machine's memory, and the
    seconds for it. Half of it stays free, as no prompt is begun beside others while less than 15% are.
    """
    sizes = ContinuousBatchingConfig(
        page_size=POSITIONS, num_blocks=2 * streams + 8, max_batch_tokens=max(_BATCH_TOKENS, streams)
    )
    with model.continuous_batching_context_manager(
        generation_config=_greedy(), continuous_batching_config=sizes
    ) as manager:
        vocabulary = model.config.vocab_size
        return rounds(streams, seconds, lambda seed: _batched(manager, prompts(streams, vocabulary, seed)))


def _batched(manager: Any, asked: Sequence[Sequence[int]]) -> list[Timeline]:
    begin = time.perf_counter()
    manager.add_requests(
        inputs=[list(prompt) for prompt in asked], max_new_tokens=NEW_TOKENS, record_timestamps=True
    )
    found: list[Timeline] = []
    while len(found) < len(asked):
        output = manager.get_result(timeout=1)
        if output is None:
            if not manager.is_running():
                raise RuntimeError("the generation thread ended")
        elif output.error is not None:
            raise RuntimeError(output.error)
        elif output.is_finished():
            found.append(Timeline(begin, output.timestamps))
    return found


def measure_llama_cpp(path: Path, vocabulary: int, streams: int, seconds: float) -> Figures:
    """A GGUF file in llama.cpp, all streams in one batch, with as many threads as torch has.

    Raises:
        LlamaCppError: the file or the context was refused.
        ImportError: `llama-cpp-python` is missing.
    """
    with LlamaCpp(path, streams, POSITIONS, torch.get_num_threads()) as engine:

        def answered(seed: int) -> list[Timeline]:
            timeline = Timeline()
            tokens = engine.start(prompts(streams, vocabulary, seed))
            timeline.mark()
            for _ in range(NEW_TOKENS - 1):
                tokens = engine.step(tokens)
                timeline.mark()
            return [timeline] * streams

        return rounds(streams, seconds, answered)


def _greedy() -> GenerationConfig:
    return GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0)
