"""Every answer is that of a model which was loaded at its version, whatever happens meanwhile."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from npt_core.bank import Bank, Columns, FactWeights, Whitening
from npt_core.engine import (
    Engine,
    EngineConfig,
    GenerationRequest,
    Runner,
    SamplingParams,
    Stream,
    TokenEvent,
)
from tests.npt_core.tiny import new_npt

D, D_FFN, WIDTH = 32, 48, 8
KEPT = 5
"""Versions behind the newest that can be pinned."""
NAMES = "ABCDE"


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@cache
def fact(name: str) -> FactWeights:
    seed = 100 * ord(name)
    return FactWeights(
        {
            i: Columns(
                F.normalize(noise(seed + i, 3, WIDTH), dim=-1),
                3 * noise(seed + 2 + i, 3, D),
                torch.full((3,), 0.5),
                noise(seed + 4 + i, 3, D_FFN),
            )
            for i in (0, 1)
        }
    )


def new_bank() -> tuple[Bank, Runner]:
    model = new_npt()
    whitening = {i: Whitening(noise(i, D_FFN) / 10, noise(10 + i, D_FFN, WIDTH)) for i in (0, 1)}
    return Bank(model, whitening).attach(), Runner(model, 96)


def heard(stream: Stream) -> list[int]:
    return [event.token_id for event in stream if isinstance(event, TokenEvent)]


@cache
def fresh(alive: frozenset[str], prompt: tuple[int, ...]) -> list[int]:
    """The oracle: a process that holds these facts, never had others, and answers nobody else."""
    bank, runner = new_bank()
    if alive:
        bank.publish(1, {name: fact(name) for name in sorted(alive)})
    engine = Engine(runner, bank, (), EngineConfig(max_running=1))
    answer = heard(engine.submit(GenerationRequest(prompt, SamplingParams(max_new_tokens=12))))
    engine.close()
    return answer


@pytest.mark.parametrize("seed", range(5))
def test_pinned_answers_are_those_of_fresh_processes_while_facts_come_and_go(seed: int) -> None:
    draw = random.Random(seed)
    bank, runner = new_bank()
    engine = Engine(runner, bank, (), EngineConfig(max_running=6, batch_tokens=48))
    history = [frozenset[str]()]
    asked: list[tuple[Stream, frozenset[str], tuple[int, ...]]] = []
    prompts = [tuple(draw.randrange(3, 400) for _ in range(draw.randint(1, 40))) for _ in range(3)]
    for _ in range(100):
        if draw.random() < 0.4:  # a write, a retraction, or a rollback to any version before
            alive, change = history[-1], frozenset(draw.sample(NAMES, draw.randint(1, 2)))
            then = draw.choice(history) if draw.random() < 0.3 else alive ^ change
            bank.publish(len(history), {n: fact(n) for n in sorted(then - alive)}, sorted(alive - then))
            history.append(then)
            bank.retire(bank.version - KEPT, engine.oldest_pinned)
        else:
            version = draw.choice([None, draw.randrange(bank.oldest, len(history))])
            prompt = draw.choice(prompts)
            request = GenerationRequest(prompt, SamplingParams(max_new_tokens=12), version)
            stream = engine.submit(request)
            assert stream.weights_version == (len(history) - 1 if version is None else version)
            asked.append((stream, history[stream.weights_version], prompt))
    for stream, alive, prompt in asked:
        assert heard(stream) == fresh(alive, prompt)
    engine.close()
    assert bank.oldest == max(0, len(history) - 1 - KEPT)
    assert len({tuple(fresh(alive, prompt)) for _, alive, prompt in asked}) > 3
