"""Greedy answers of the engine, many at once, are those of transformers, each alone and all batched."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import pytest

from npt_core.bank import Bank
from npt_core.engine import (
    Engine,
    EngineConfig,
    FinishEvent,
    FinishReason,
    GenerationRequest,
    Runner,
    SamplingParams,
    TokenEvent,
)
from npt_core.loading import Runtime
from npt_core.training.corpus import CorpusConfig, documents, text_of
from tests.npt_core.helpers import by_continuous_batching, by_transformers, parting
from tests.reference.conftest import ACCEPTANCE, Written

NOISE = 1e-4
"""Two logits this close may come in another order elsewhere: they are some tens, in float32."""
LONGEST = 480
NEW = 24
CLIENTS = 8


@dataclass(frozen=True)
class Asked:
    prompt: tuple[int, ...]
    version: int


@dataclass(frozen=True)
class Answered:
    tokens: list[int]
    reason: FinishReason


def prompts(runtime: Runtime, count: int, seed: int = 1) -> list[tuple[int, ...]]:
    """Text of the corpus cut anywhere, random tokens, and questions about facts, in turn."""
    draw, template = random.Random(seed), runtime.template
    text = [t for d in islice(documents(seed, CorpusConfig()), 400) for t in template.encode(text_of(d))]
    questions = [template.encode(form) for a in ACCEPTANCE[:2] for form in a.forms()]
    made: list[tuple[int, ...]] = []
    while len(made) < count:
        length = round(LONGEST ** draw.random()) if len(made) % 2 else draw.randint(1, LONGEST)
        start = draw.randrange(len(text) - length)
        made.append(tuple(text[start : start + length]))
        made.append(tuple(draw.randrange(3, runtime.model.config.vocab_size) for _ in range(length)))
        made.append(tuple(draw.choice(questions)))
    return made[:count]


def answered(engine: Engine, asked: Sequence[Asked], seed: int) -> list[Answered]:
    """Clients beside each other send bursts of random size, each when its last one is answered."""

    def client(number: int) -> dict[int, Answered]:
        draw, own, found = random.Random(seed + number), list(range(number, len(asked), CLIENTS)), {}
        while own:
            burst, own = own[: (size := draw.randint(1, 6))], own[size:]
            streams = [
                engine.submit(GenerationRequest(asked[i].prompt, SamplingParams(NEW), asked[i].version))
                for i in burst
            ]
            for i, stream in zip(burst, streams, strict=True):
                *tokens, end = stream
                assert isinstance(end, FinishEvent)
                found[i] = Answered([e.token_id for e in tokens if isinstance(e, TokenEvent)], end.reason)
        return found

    with ThreadPoolExecutor(CLIENTS) as pool:
        found = {i: answer for part in pool.map(client, range(CLIENTS)) for i, answer in part.items()}
    return [found[i] for i in range(len(asked))]


def settle(
    runtime: Runtime, asked: Sequence[Asked], ours: Sequence[list[int]], theirs: Sequence[list[int]]
) -> None:
    """Answers are equal, or part at two logits that tie within float noise: those are counted and told."""
    ties = []
    for each, one, other in zip(asked, ours, theirs, strict=True):
        found = parting(runtime.model, each.prompt, one, other, weights_version=each.version)
        if found is not None:
            assert found.margin < NOISE, (len(each.prompt), each.version, found)
            ties.append(found)
    assert len(ties) <= len(asked) / 100, ties
    if ties:
        warnings.warn(f"{len(ties)} of {len(asked)} answers part at a tie: {ties}", stacklevel=2)


@pytest.mark.parametrize("pages", [512, 40], ids=["roomy", "cramped"])
def test_answers_of_a_busy_engine_are_those_of_generate(
    runtime: Runtime, bank: Bank, written: Written, stress: bool, pages: int
) -> None:
    for version, fact in enumerate(ACCEPTANCE[:2], start=1):
        bank.publish(version, {fact.name: written[fact.name].weights})
    draw, question = random.Random(pages), tuple(runtime.template.encode(ACCEPTANCE[0].question))
    asked = [Asked(question, 0), Asked(question, 1)]
    asked += [Asked(prompt, draw.randrange(3)) for prompt in prompts(runtime, 198 if stress else 26)]
    (end,) = runtime.template.eos_token_ids
    engine = Engine(Runner(runtime.model, pages), bank, [end], EngineConfig(max_running=12))
    found = answered(engine, asked, seed=pages)
    engine.close()
    assert (engine.preemptions > 0) == (pages == 40)
    expected = [
        by_transformers(runtime.model, each.prompt, NEW, end, weights_version=each.version) for each in asked
    ]
    settle(runtime, asked, [answer.tokens for answer in found], expected)
    ended = [answer.reason is FinishReason.STOP for answer in found]
    assert ended == [len(answer.tokens) < NEW for answer in found]
    assert found[0].tokens != found[1].tokens, "facts change no answer here"


def test_answers_are_those_of_continuous_batching_by_transformers(
    runtime: Runtime, bank: Bank, stress: bool
) -> None:
    asked = [Asked(prompt, 0) for prompt in dict.fromkeys(prompts(runtime, 150 if stress else 21, seed=2))]
    engine = Engine(Runner(runtime.model, 128), bank, (), EngineConfig(max_running=12))
    found = answered(engine, asked, seed=0)
    engine.close()
    expected = by_continuous_batching(runtime.model, [each.prompt for each in asked], NEW)
    settle(runtime, asked, [answer.tokens for answer in found], expected)
