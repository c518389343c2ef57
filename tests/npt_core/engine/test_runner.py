"""The lean forward against `generate`, and against itself in other company."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from npt_core.checkpoint import npt_config
from npt_core.convert import convert_llama_to_npt
from npt_core.engine import (
    Engine,
    EngineConfig,
    GenerationRequest,
    Runner,
    SamplingParams,
    Sequence,
    Span,
    Stream,
    TokenEvent,
    UnsupportedModel,
)
from npt_core.model import NPTForCausalLM
from npt_core.native import compiled
from tests.conftest import TINY
from tests.npt_core.helpers import awakened, by_transformers, mixed_npt
from tests.programs import skip_or_fail


class Base:
    version = 0
    oldest = 0


def llama(**overrides: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**TINY, "max_position_embeddings": 128, **overrides})).eval()


def plain(**overrides: Any) -> NPTForCausalLM:
    teacher = llama(**overrides)
    model = NPTForCausalLM(npt_config(teacher.config)).eval()
    model.load_state_dict(teacher.state_dict())
    return model


MODELS: dict[str, Callable[[], NPTForCausalLM]] = {
    "plain, GQA, scaled rope": plain,
    "plain, tied": lambda: plain(tie_word_embeddings=True),
    "plain, biases": lambda: plain(attention_bias=True, mlp_bias=True, num_key_value_heads=4),
    "v1": lambda: awakened(convert_llama_to_npt(llama(), "all", "v1", rank=6)).eval(),
    "v2": lambda: awakened(convert_llama_to_npt(llama(), "all", "v2", rank=6)).eval(),
    "v2, biases": lambda: awakened(
        convert_llama_to_npt(llama(attention_bias=True), "all", "v2", rank=6)
    ).eval(),
    "v2, additive": lambda: awakened(
        convert_llama_to_npt(llama(), "all", "v2", rank=6, modulation_type="additive")
    ).eval(),
    "mixed": lambda: mixed_npt(llama()).eval(),
}


def prompts(count: int, longest: int = 90) -> list[tuple[int, ...]]:
    draw = random.Random(7)
    return [tuple(draw.randrange(3, 61) for _ in range(draw.randint(1, longest))) for _ in range(count)]


@pytest.fixture(params=[True, False], ids=["kernels", "torch"])
def make_runner(request: pytest.FixtureRequest) -> Iterator[Callable[..., Runner]]:
    """Runners by compiled kernels, with all threads; and by what torch computes where there is no compiler,
    with one: without AVX-512 MKL rounds by how many rows each thread gets.
    """
    if request.param and compiled() is None:
        skip_or_fail("kernels were not compiled: install a C compiler, then the project")
    before = torch.get_num_threads()
    torch.set_num_threads(max(before, 2) if request.param else 1)
    yield partial(Runner, native=request.param)
    torch.set_num_threads(before)


def heard(stream: Stream, index: int = 0) -> list[int]:
    return [e.token_id for e in stream if isinstance(e, TokenEvent) and e.index == index]


@pytest.mark.parametrize("name", MODELS)
def test_greedy_answers_of_a_full_batch_equal_those_of_generate(
    name: str, make_runner: Callable[..., Runner]
) -> None:
    model = MODELS[name]()
    asked = prompts(20)
    engine = Engine(make_runner(model, 200), Base(), (), EngineConfig(max_running=8, batch_tokens=64))
    streams = [engine.submit(GenerationRequest(p, SamplingParams(max_new_tokens=9))) for p in asked]
    answers = [heard(stream) for stream in streams]
    engine.close()
    assert answers == [by_transformers(model, prompt, 9) for prompt in asked]


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_modulation_scale_equals_that_of_the_model(scale: float, make_runner: Callable[..., Runner]) -> None:
    model = MODELS["mixed"]()
    engine = Engine(make_runner(model, 64), Base(), ())
    asked = prompts(4)
    both = [(prompt, factor) for prompt in asked for factor in (None, scale)]
    streams = [
        engine.submit(GenerationRequest(p, SamplingParams(max_new_tokens=9), modulation_scale=factor))
        for p, factor in both
    ]
    answers = [heard(stream) for stream in streams]
    engine.close()
    assert answers == [by_transformers(model, p, 9, modulation_scale=factor) for p, factor in both]


def test_weights_changed_in_place_are_seen_by_the_next_step(make_runner: Callable[..., Runner]) -> None:
    model = MODELS["v2"]()
    engine = Engine(make_runner(model, 64), Base(), (), EngineConfig(prefix_cache=False))
    request = GenerationRequest(prompts(1)[0], SamplingParams(max_new_tokens=9))
    before = heard(engine.submit(request))
    with torch.no_grad():
        model.model.layers[0].mlp.gate_proj.weight.mul_(-1)
    after = heard(engine.submit(request))
    engine.close()
    assert before != after == by_transformers(model, request.prompt_ids, 9)


def test_angles_that_depend_on_the_batch_are_refused() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(UnsupportedModel, match="dynamic"):
        Runner(plain(rope_parameters=rope))


class Recording:
    """A runner that keeps the logits of every token, by request."""

    draft_tokens = 0  # no drafts: a row of logits for each token

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.num_pages, self.page_size = runner.num_pages, runner.page_size
        self.max_positions, self.batch_tokens = runner.max_positions, runner.batch_tokens
        self.num_tokens = runner.num_tokens
        self.logits: dict[tuple[tuple[int, ...], int], list[Tensor]] = {}

    def run(self, spans: list[Span], between: Callable[[], None]) -> Tensor:
        logits = self.runner.run(spans, between)
        sampling = (span.sequence for span in spans if span.samples)
        for sequence, row in zip(sampling, logits, strict=True):
            key = (sequence.request.prompt_ids, sequence.version)
            self.logits.setdefault(key, []).append(row)
        return logits


def wide(**overrides: Any) -> NPTForCausalLM:
    """The widths of the reference model, at which MKL picks its kernels; two layers of them."""
    shape = {"hidden_size": 320, "intermediate_size": 960, "num_attention_heads": 5, "num_hidden_layers": 2,
             "num_key_value_heads": 5, "vocab_size": 2048, "max_position_embeddings": 512,
             "initializer_range": 0.05}  # fmt: skip
    return awakened(convert_llama_to_npt(llama(**shape, **overrides), "all", "v2", rank=64)).eval()


def test_company_changes_no_bit_of_the_logits(make_runner: Callable[..., Runner]) -> None:
    """Alone; in a crowd; with so few pages that sequences are preempted; at several scales."""
    model = wide()
    asked = [*prompts(12, 150), *(p * 5 for p in prompts(2, 80))]
    asked.append(asked[3] + asked[5])
    alone, crowded, cramped = (Recording(make_runner(model, pages)) for pages in (64, 400, 34))
    new = SamplingParams(max_new_tokens=24, temperature=1.0, seed=5)
    requests = [
        GenerationRequest(prompt, new, modulation_scale=(None, 1.0, 0.5)[i % 3])
        for i, prompt in enumerate(asked)
    ]
    engine = Engine(alone, Base(), (), EngineConfig(max_running=1, prefix_cache=False))
    solo = [heard(engine.submit(request)) for request in requests]
    engine.close()
    for runner, config in (
        (crowded, EngineConfig(max_running=32, batch_tokens=256)),
        (cramped, EngineConfig(max_running=8, batch_tokens=48)),
    ):
        engine = Engine(runner, Base(), (), config)
        streams = [engine.submit(request) for request in requests]
        assert [heard(stream) for stream in streams] == solo
        assert (engine.preemptions > 0) == (runner is cramped)
        engine.close()
        for key, rows in alone.logits.items():
            assert torch.equal(torch.stack(runner.logits[key]), torch.stack(rows)), len(key[0])


def test_sequences_of_one_request_differ_by_seed_and_share_the_prompt() -> None:
    model = MODELS["v2"]()
    engine = Engine(Runner(model, 64), Base(), ())
    prompt = prompts(1, 90)[0] * 3
    sampling = {"temperature": 1.0, "max_new_tokens": 8}
    request = GenerationRequest(prompt, SamplingParams(n=3, seed=4, **sampling))  # type: ignore[arg-type]
    events = [e for e in engine.submit(request) if isinstance(e, TokenEvent)]
    together = [[e.token_id for e in events if e.index == i] for i in range(3)]
    assert engine.prefix_cache.hit_tokens == 2 * ((len(prompt) - 1) // 16 * 16)
    alone = [
        heard(engine.submit(GenerationRequest(prompt, SamplingParams(seed=4 + i, **sampling))))  # type: ignore[arg-type]
        for i in range(3)
    ]
    engine.close()
    assert together == alone


def test_pages_apart_give_the_bits_of_pages_in_a_row(make_runner: Callable[..., Runner]) -> None:
    model = MODELS["mixed"]()
    prompt = tuple(range(3, 43))

    def logits(pages: list[int]) -> Tensor:
        sequence = Sequence(GenerationRequest(prompt), Stream(1, 0), 0, 64)
        sequence.pages = pages
        return make_runner(model, 16).run([Span(sequence, 0, 40)])

    assert torch.equal(logits([2, 3, 4]), logits([9, 0, 5]))
