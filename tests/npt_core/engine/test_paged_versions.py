"""Through the GPU's runner, too, every answer is that of a model which was loaded at its version."""

from __future__ import annotations

import random
from functools import cache

import pytest
from torch import Tensor

from npt_core.bank import Bank
from npt_core.engine import Engine, EngineConfig, GenerationRequest, Runner, SamplingParams, Stream
from npt_core.model import NPTForCausalLM
from tests.npt_core.engine.eager import on_cpu
from tests.npt_core.engine.test_paged_runner import D_FFN, D, bank_of, fact, noise
from tests.npt_core.engine.test_runner import MODELS, heard

NAMES = "ABCD"
FOLDS: list[dict[int, Tensor]] = [
    {},
    {1: noise(7, D, D_FFN).double() / 15},
    {0: noise(8, D, D_FFN).double() / 15},
]
KEPT = 4
State = tuple[frozenset[str], int]
"""Facts alive, and the fold in force."""


@cache
def model() -> NPTForCausalLM:
    return MODELS["mixed"]()


def weights(name: str) -> object:
    return fact(100 * ord(name), rows=4, factors=name == "D")


def ask(engine: Engine, prompt: tuple[int, ...], version: int | None = None) -> Stream:
    return engine.submit(GenerationRequest(prompt, SamplingParams(max_new_tokens=8), version))


@cache
def fresh(state: State, prompt: tuple[int, ...]) -> list[int]:
    """Of the CPU's runner, which holds this state alone."""
    alive, fold = state
    served = MODELS["mixed"]()
    bank = bank_of(served)
    bank.publish(1, {name: weights(name) for name in sorted(alive)}, deltas=FOLDS[fold])  # type: ignore[misc]
    engine = Engine(Runner(served, 32), bank, ())
    answer = heard(ask(engine, prompt))
    engine.close()
    return answer


def publish(engine: Engine, bank: Bank, old: State, new: State) -> None:
    births = {name: weights(name) for name in sorted(new[0] - old[0])}
    deltas = None if new[1] == old[1] else FOLDS[new[1]]
    version = bank.version + 1
    engine.execute(lambda: bank.publish(version, births, sorted(old[0] - new[0]), deltas), urgent=True)  # type: ignore[arg-type]
    engine.execute(lambda: bank.retire(bank.version - KEPT, engine.oldest_pinned))


@pytest.mark.parametrize("seed", range(3))
def test_answers_are_those_of_their_version_while_facts_and_folds_come_and_go(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(seed)
    served = MODELS["mixed"]()
    bank = bank_of(served)
    runner, _, captures = on_cpu(served, monkeypatch, 24)
    engine = Engine(runner, bank, (), EngineConfig(max_running=6, batch_tokens=48))
    history: list[State] = [(frozenset(), 0)]
    prompts = [tuple(draw.randrange(3, 61) for _ in range(draw.randint(1, 30))) for _ in range(2)]
    asked: list[tuple[Stream, State, tuple[int, ...]]] = []
    for _ in range(60):
        if draw.random() < 0.3:
            alive, fold = history[-1]
            change = frozenset(draw.sample(NAMES, 1))
            new = draw.choice([*history[-3:], (alive ^ change, fold), (alive, draw.randrange(len(FOLDS)))])
            publish(engine, bank, history[-1], new)
            history.append(new)
        else:
            version = draw.choice([None, draw.randrange(bank.oldest, len(history))])
            prompt = draw.choice(prompts)
            stream = ask(engine, prompt, version)
            asked.append((stream, history[stream.weights_version], prompt))
    answers = [(heard(stream), fresh(state, prompt)) for stream, state, prompt in asked]
    engine.close()
    assert all(found == wanted for found, wanted in answers)
    assert len({tuple(wanted) for _, wanted in answers}) > 3
    assert captures.replays > captures.made > 1


def test_bank_of_another_model_is_followed_when_it_is_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    served = MODELS["mixed"]()
    runner, _, captures = on_cpu(served, monkeypatch)
    engine = Engine(runner, first := bank_of(served), ())
    prompt = (5, 6, 7)
    plain = heard(ask(engine, prompt))
    second = Bank(served, {i: layer.whitening for i, layer in enumerate(first.layers) if layer.whitening})
    second.publish(1, {"A": weights("A"), "D": weights("D")})  # type: ignore[dict-item]
    second.attach()
    first.version = 1  # what the engine admits at
    made = captures.made
    assert heard(ask(engine, prompt)) == fresh((frozenset("AD"), 0), prompt) != plain
    assert captures.made > made
    engine.close()
