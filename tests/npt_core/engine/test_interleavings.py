"""A request at version v is answered as by a process that knows what v knows and nothing else,
through writes, retractions, folds, rollbacks and other requests in any order.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from npt_core.bank import Bank, Columns, Factors, FactWeights, Whitening
from npt_core.engine import (
    Engine,
    EngineConfig,
    Event,
    FinishEvent,
    GenerationRequest,
    Runner,
    SamplingParams,
    Stream,
    TokenEvent,
)
from npt_core.model import NPTForCausalLM
from tests.npt_core.engine.test_runner import wide
from tests.npt_core.engine.test_versions import NAMES, noise
from tests.npt_core.tiny import shared_npt

Names = frozenset[str]
Prompt = tuple[int, ...]


class Known(NamedTuple):
    """What a version knows: facts in the bank, and facts folded into `down_proj`."""

    alive: Names = frozenset()
    folded: Names = frozenset()

    def without(self, names: Names) -> Known:
        return Known(self.alive - names, self.folded - names)


NOTHING = Known()
PROMPTS = [
    tuple(random.Random(length).randrange(3, 400) for _ in range(length)) for length in (1, 5, 16, 17, 33, 60)
]
NEW = SamplingParams(max_new_tokens=8, logprobs=0)


@dataclass(frozen=True)
class World:
    """A model, and columns that fire on a good part of all tokens at `threshold`.

    At small widths MKL rounds a row by its company: there, `tolerance` is for log-probabilities.
    """

    model: Callable[[], NPTForCausalLM]
    key_width: int
    threshold: float
    tolerance: float

    def new_bank(self, pages: int) -> tuple[Bank, Runner]:
        shared = self.model()
        model = copy.deepcopy(shared, {id(p): p for p in shared.parameters()})
        d_ffn = model.config.intermediate_size
        whitening = {i: Whitening(noise(i, d_ffn) / 10, noise(10 + i, d_ffn, self.key_width)) for i in (0, 1)}
        return Bank(model, whitening).attach(), Runner(model, pages)

    @cache  # noqa: B019  (there are two worlds)
    def fact(self, name: str) -> FactWeights:
        """Columns in both layers; one fact in two has factors, too."""
        seed, config = 1000 * ord(name), self.model().config
        d, d_ffn = config.hidden_size, config.intermediate_size
        columns = {
            i: Columns(
                F.normalize(noise(seed + i, 3, self.key_width), dim=-1),
                3 * noise(seed + 2 + i, 3, d),
                torch.full((3,), self.threshold),
                noise(seed + 4 + i, 3, d_ffn),
            )
            for i in (0, 1)
        }
        if NAMES.index(name) % 2:
            return FactWeights(columns)
        gate = Factors(noise(seed + 6, 2, d_ffn) / 4, noise(seed + 7, 2, d) / 4)
        down = Factors(noise(seed + 8, 2, d) / 4, noise(seed + 9, 2, d_ffn) / 4)
        return FactWeights(columns, {(0, "gate_proj"): gate, (1, "down_proj"): down})

    def deltas(self, folded: Names) -> dict[int, Tensor]:
        """What a fold of these facts adds to `down_proj` of both layers; nothing for none."""
        config = self.model().config
        shape = config.hidden_size, config.intermediate_size
        seeds = [1000 * ord(name) for name in sorted(folded)]
        return {i: sum(noise(s + 20 + i, *shape).double() / 8 for s in seeds) for i in (0, 1) if seeds}


WORLDS = {
    "tiny": World(shared_npt, 8, 0.5, 1e-3),
    "wide": World(cache(wide), 64, 0.2, 0.0),
}


@cache
def fresh(world: World, known: Known, prompt: Prompt) -> list[Event]:
    """A process that holds these facts, never had others, and answers nobody else."""
    bank, runner = world.new_bank(16)
    if known != NOTHING:
        births = {name: world.fact(name) for name in sorted(known.alive)}
        bank.publish(1, births, deltas=world.deltas(known.folded))
    engine = Engine(runner, bank, (), EngineConfig(max_running=1))
    answer = list(engine.submit(GenerationRequest(prompt, NEW)))
    engine.close()
    return answer


def tokens(events: list[Event]) -> tuple[int, ...]:
    return tuple(event.token_id for event in events if isinstance(event, TokenEvent))


def logprobs(events: list[Event]) -> list[float | None]:
    return [event.logprob for event in events if isinstance(event, TokenEvent)]


@dataclass
class Interleaving:
    """One bank and one engine under a random sequence of moves."""

    world: World
    draw: random.Random
    history: list[Known] = field(default_factory=lambda: [NOTHING])
    asked: list[tuple[Stream, Known, Prompt]] = field(default_factory=list)

    def __post_init__(self) -> None:
        # 16 pages do not hold four of the longest prompts: sequences are preempted.
        self.bank, runner = self.world.new_bank(self.draw.choice([16, 64]))
        config = EngineConfig(
            max_running=self.draw.choice([2, 6]),
            batch_tokens=self.draw.choice([16, 48, 128]),
            prefix_cache=self.draw.random() < 0.8,
        )
        self.engine = Engine(runner, self.bank, (), config)

    def move(self) -> None:
        moves = [self.write, self.retract, self.fold, self.roll_back, self.read, self.leave]
        self.draw.choices(moves, [3, 2, 1, 1, 8, 1])[0]()

    def write(self) -> None:
        now = self.history[-1]
        absent = frozenset(NAMES) - now.alive - now.folded
        if absent:
            self._publish(now._replace(alive=now.alive | self._some(absent)))

    def retract(self) -> None:
        now = self.history[-1]
        if now != NOTHING:
            self._publish(now.without(frozenset(self.draw.choice(sorted(now.alive | now.folded)))))

    def fold(self) -> None:
        now = self.history[-1]
        if now.alive:
            chosen = self._some(now.alive)
            self._publish(Known(now.alive - chosen, now.folded | chosen))

    def roll_back(self) -> None:
        self._publish(self.draw.choice(self.history))

    def read(self) -> None:
        version = self.draw.choice([None, self.draw.randrange(len(self.history))])
        prompt = self.draw.choice(PROMPTS)
        stream = self.engine.submit(GenerationRequest(prompt, NEW, version))
        pinned = len(self.history) - 1 if version is None else version
        assert stream.weights_version == pinned
        self.asked.append((stream, self.history[pinned], prompt))

    def leave(self) -> None:
        """A client that stops listening: its place and pages go to others."""
        if self.asked:
            self.draw.choice(self.asked)[0].cancel()

    def settle(self) -> set[tuple[Known, Prompt]]:
        """Compare every answer, those that were cancelled as far as they came. What was compared."""
        for stream, known, prompt in self.asked:
            *events, end = stream
            assert isinstance(end, FinishEvent)
            expected = fresh(self.world, known, prompt)[:-1]
            if stream.is_cancelled(0):
                expected = expected[: len(events)]
            assert tokens(events) == tokens(expected), (known, len(prompt))
            assert logprobs(events) == pytest.approx(logprobs(expected), rel=0, abs=self.world.tolerance)
        self.engine.close()
        return {(known, prompt) for _, known, prompt in self.asked}

    def _some(self, names: Names) -> Names:
        return frozenset(self.draw.sample(sorted(names), self.draw.randint(1, len(names))))

    def _publish(self, then: Known) -> None:
        now = self.history[-1]
        births = {name: self.world.fact(name) for name in sorted(then.alive - now.alive)}
        deltas = None if then.folded == now.folded else self.world.deltas(then.folded)
        self.bank.publish(len(self.history), births, sorted(now.alive - then.alive), deltas)
        self.history.append(then)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Products this small gain nothing from a second one, and wait for it where others compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", WORLDS)
def test_every_fact_changes_an_answer_and_sets_of_facts_differ(name: str) -> None:
    """Otherwise the comparisons below would say nothing."""
    world = WORLDS[name]
    for fact in NAMES:
        changed = [
            [tokens(fresh(world, known, p)) != tokens(fresh(world, NOTHING, p)) for p in PROMPTS]
            for known in (Known(frozenset(fact)), Known(folded=frozenset(fact)))
        ]
        assert all(map(any, changed)), fact
    sets = [NOTHING, *(Known(frozenset(NAMES[:count])) for count in range(1, len(NAMES) + 1))]
    assert len({tuple(tokens(fresh(world, known, p)) for p in PROMPTS) for known in sets}) == len(sets)


@pytest.mark.parametrize(("name", "few", "many"), [("tiny", 20, 500), ("wide", 4, 500)])
def test_answers_are_those_of_fresh_processes_through_random_interleavings(
    stress: bool, name: str, few: int, many: int
) -> None:
    world, compared = WORLDS[name], set()
    for seed in range(many if stress else few):
        interleaving = Interleaving(world, random.Random(seed))
        for _ in range(40):
            interleaving.move()
        compared |= interleaving.settle()
    assert len({tokens(fresh(world, known, prompt)) for known, prompt in compared}) > len(compared) / 3
