"""The engine under random traffic: any order of submissions, writes, cancels, deadlines and steps."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from unittest.mock import Mock, patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import npt_core.engine.engine
from npt_core.engine import (
    Engine,
    EngineConfig,
    Event,
    FinishEvent,
    FinishReason,
    GenerationRequest,
    QueueFull,
    SamplingParams,
    Stream,
    TokenEvent,
)
from npt_core.engine.page_table import PAGE
from tests.npt_core.engine.census import is_idle
from tests.npt_core.engine.fakes import RememberingRunner, after

PAGES, END, RUNNING, QUEUE = 12, 7, 4, 6
PATIENCE = 4000
"""Looks at an engine that does nothing before it is taken to hang: ample, on a busy machine."""


@dataclass
class Client:
    """One request, what its sequences were told, and the tokens they had when they were to end."""

    request: GenerationRequest
    stream: Stream
    told: list[list[Event]] = field(default_factory=list)
    cancelled_at: list[int | None] = field(default_factory=list)
    late_at: int | None = None

    def __post_init__(self) -> None:
        n = self.request.params.n
        self.told, self.cancelled_at = [[] for _ in range(n)], [None] * n
        self.stream.subscribe(lambda event: self.told[event.index].append(event))

    def answer(self) -> tuple[list[int], FinishReason]:
        """What an engine that serves nobody else would say."""
        root, prompt = (self.stream.weights_version, self.request.modulation_scale), self.request.prompt_ids
        tokens, limit = list(prompt), min(len(prompt) + self.request.params.max_new_tokens, PAGES * PAGE)
        while len(tokens) < limit:
            token = after([(root, token) for token in tokens])
            if token == END:
                return tokens[len(prompt) :], FinishReason.STOP
            tokens.append(token)
        return tokens[len(prompt) :], FinishReason.LENGTH


class Traffic(RuleBasedStateMachine):
    """The runner waits for a permit in every step, so that moves fall between steps."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.clock = patch.object(
            npt_core.engine.engine, "time", Mock(wraps=time, monotonic=lambda: self.now)
        )
        self.clock.start()
        self.ends: Counter[tuple[Stream, int]] = Counter()
        self.ears = patch.object(Stream, "put", self._observed(Stream.put))
        self.ears.start()
        self.gate = threading.Semaphore(0)
        self.runner = RememberingRunner(self.gate, PAGES)
        self.bank = SimpleNamespace(version=0, oldest=0)
        self.clients: list[Client] = []
        self.in_step = False

    @initialize(batch_tokens=st.sampled_from([16, 40, 128]), cached=st.booleans())
    def start(self, batch_tokens: int, cached: bool) -> None:
        config = EngineConfig(RUNNING, QUEUE, batch_tokens, cached)
        self.engine = Engine(self.runner, self.bank, [END], config)

    @rule(
        base=st.integers(0, 2),
        length=st.integers(1, PAGES * PAGE - 1),
        new=st.integers(1, 60),
        n=st.integers(1, 3),
        back=st.one_of(st.none(), st.integers(0, 2)),
        scale=st.sampled_from([None, None, 0.0]),
        patience=st.one_of(st.none(), st.integers(0, 4)),
    )
    def submit(
        self,
        base: int,
        length: int,
        new: int,
        n: int,
        back: int | None,
        scale: float | None,
        patience: int | None,
    ) -> None:
        newest = self.bank.version
        pinned = None if back is None else max(newest - back, 0)
        request = GenerationRequest(
            tuple((base + i // 20) % 5 for i in range(length)),
            SamplingParams(new, n=n),
            pinned,
            scale,
            None if patience is None else self.now + patience,
        )
        self._await_step()
        still_open = sum(self._open(c, i) for c in self.clients for i in range(len(c.told)))
        try:
            stream = self.engine.submit(request)
        except QueueFull:
            assert still_open + n > RUNNING + QUEUE
            return
        assert still_open + n <= RUNNING + QUEUE
        assert stream.weights_version == (newest if pinned is None else pinned)
        self.clients.append(Client(request, stream, late_at=0 if patience == 0 else None))

    @rule()
    def publish(self) -> None:
        self.bank.version += 1

    @rule()
    def let_time_pass(self) -> None:
        self.now += 1
        for client in self.clients:
            deadline = client.request.deadline
            if deadline is not None and self.now >= deadline and client.late_at is None:
                client.late_at = max(map(len, client.told))

    @precondition(lambda self: self.clients)
    @rule(which=st.integers(0, 50), index=st.one_of(st.none(), st.integers(0, 2)))
    def cancel(self, which: int, index: int | None) -> None:
        client = self.clients[which % len(self.clients)]
        n = len(client.told)
        chosen = range(n) if index is None else [index % n]
        client.stream.cancel(None if index is None else index % n)
        for i in chosen:
            if client.cancelled_at[i] is None:
                client.cancelled_at[i] = len(client.told[i])

    @rule(steps=st.integers(1, 5))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self._await_step()
            if not self.in_step:
                return
            due = [(c, i) for c in self.clients for i in range(len(c.told)) if self._is_due(c, i)]
            self.gate.release()
            self.in_step = False
            self._await_step()
            assert not any(self._open(client, i) for client, i in due), "somebody goes on after the end"

    @invariant()
    def everybody_is_told_the_truth(self) -> None:
        for client in self.clients:
            tokens, reason = client.answer()
            for index, told in enumerate(tuple(map(tuple, client.told))):
                heard = [event.token_id for event in told if isinstance(event, TokenEvent)]
                assert heard == tokens[: len(heard)]
                if told and isinstance(told[-1], FinishEvent):
                    self._check_end(client, index, len(heard), told[-1].reason, len(tokens), reason)

    def _check_end(
        self, client: Client, index: int, made: int, told: FinishReason, length: int, reason: FinishReason
    ) -> None:
        assert self.ends[client.stream, index] == 1
        cancelled, late = client.cancelled_at[index], client.late_at
        if told is FinishReason.CANCELLED:
            assert cancelled is not None
            assert made <= cancelled + 1
        elif told is FinishReason.DEADLINE:
            assert late is not None
            assert made <= late + 1
        else:
            assert (made, told) == (length, reason)

    def teardown(self) -> None:
        try:
            for _ in range(5000):
                if not any(self._open(c, i) for c in self.clients for i in range(len(c.told))):
                    break
                self.step(1)
            assert all(self.ends[c.stream, i] == 1 for c in self.clients for i in range(len(c.told)))
            self.everybody_is_told_the_truth()
            assert is_idle(self.engine)
        finally:
            self.gate.release(10_000)
            self.engine.close()
            self.ears.stop()
            self.clock.stop()

    def _observed(self, put: Callable[[Stream, Event], None]) -> Callable[[Stream, Event], None]:
        """Counts ends before the stream drops a second one."""

        def observed(stream: Stream, event: Event) -> None:
            self.ends[stream, event.index] += isinstance(event, FinishEvent)
            put(stream, event)

        return observed

    def _open(self, client: Client, index: int) -> bool:
        return client.stream.is_open(index)

    def _is_due(self, client: Client, index: int) -> bool:
        """Whether a sequence must not outlive the step that is computed now."""
        return client.cancelled_at[index] is not None or client.late_at is not None

    def _await_step(self) -> None:
        """Until the runner waits in its next step, or there is nothing left to compute."""
        for _ in range(PATIENCE):
            if self.in_step or all(client.stream.finished for client in self.clients):
                return
            self.in_step = self.runner.entered.acquire(timeout=0.005)
        raise AssertionError("somebody waits and nothing is computed")


def test_everybody_is_told_the_truth_and_ends_once(stress: bool) -> None:
    examples = 1000 if stress else 60
    slow = [HealthCheck.too_slow]
    run_state_machine_as_test(
        Traffic,
        settings=settings(
            max_examples=examples, stateful_step_count=40, deadline=None, suppress_health_check=slow
        ),
    )
