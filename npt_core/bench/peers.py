"""The same weights and prompts in transformers: `generate`, and its own continuous batching."""

import time
from typing import Any

import torch
from transformers import GenerationConfig

from npt_core.bench.load import NEW_TOKENS, Figures, prompts


def measure_generate(model: Any, streams: int, seconds: float) -> Figures:
    """One call of `generate` for each batch of `streams` prompts of equal length."""
    begin, tokens, seed = time.perf_counter(), 0, 0
    while not tokens or time.perf_counter() - begin < seconds:
        seed += 1
        ids = torch.tensor(prompts(streams, model.config.vocab_size, seed))
        model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=_greedy())
        tokens += streams * NEW_TOKENS
    return Figures(streams, tokens / (time.perf_counter() - begin))


def measure_continuous(model: Any, streams: int, seconds: float) -> Figures:
    """`generate_batch`: continuous batching over paged attention."""
    begin, tokens, seed = time.perf_counter(), 0, 0
    while not tokens or time.perf_counter() - begin < seconds:
        seed += 1
        asked = [list(p) for p in prompts(streams, model.config.vocab_size, seed)]
        answers = model.generate_batch(inputs=asked, generation_config=_greedy(), progress_bar=False)
        tokens += sum(len(answer.generated_tokens) for answer in answers.values())
    if not tokens:
        raise RuntimeError("no tokens came")
    return Figures(streams, tokens / (time.perf_counter() - begin))


def _greedy() -> GenerationConfig:
    return GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0)
