"""Long work in pieces between the engine's steps, on the engine's own thread.

One thread computes everything: libgomp keeps workers for every thread that computes, and once
there are more of them than processors they sleep between products instead of spinning, which
makes each step two to three times slower. So the work is a greenlet: it runs until it says that a
piece is done, and the engine decides when it goes on.
"""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import torch
from greenlet import getcurrent, greenlet

T = TypeVar("T")
SLOW, RATE = 0.9, 0.04
"""The share of steps, and of pieces, that a slow one is not exceeded by; how fast its estimate follows."""
LATEST = 0.2
"""What the latest step weighs in the time that is expected of one with as many rows."""
SAVINGS = 20
"""What may be saved up for short steps, in shares of a slow one."""


class _Slow:
    """What SLOW of all durations so far do not exceed, and the late ones more than the early."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def tell(self, seconds: float) -> None:
        # Up and down in proportion: at rest where SLOW are shorter.
        up = seconds > self.seconds
        self.seconds = self.seconds * (1 + RATE * (SLOW if up else SLOW - 1)) or seconds


class _Job:
    """Work, and the future of who waits for it."""

    def __init__(self, work: Callable[[], T], outcome: "Future[T]") -> None:
        def run() -> None:
            try:
                result = work()
            except BaseException as error:  # told to whoever waits for it
                self.fail(error)
            else:
                if not outcome.done():
                    outcome.set_result(result)

        self.run = run
        self._outcome = outcome

    def fail(self, error: BaseException) -> None:
        """Unless it has an outcome, this is it."""
        if not self._outcome.done():
            self._outcome.set_exception(error)


class Background:
    """Jobs, one after the other, in a share of the time beside steps, and all of it without steps. What is
    urgent goes before all of them, between two pieces if need be, and owes nothing.

    `due` tells whether a step waits. `add` may be called from any thread, the rest from one.
    """

    def __init__(self, share: float, due: Callable[[], bool]) -> None:
        if not 0 < share < 1:
            raise ValueError("share must be above 0 and below 1")
        self._allowance = share / (1 - share)  # seconds of pieces for each second of steps
        self._due = due
        self._jobs: deque[_Job] = deque()
        self._urgent: deque[_Job] = deque()
        self._running: greenlet | None = None
        self._job: _Job | None = None  # what `_running` runs
        self._steps = getcurrent()  # where `advance` was called
        self._credit = 0.0
        self._step, self._piece = _Slow(), _Slow()
        self._expected: dict[int, float] = {}  # seconds of a step by its rows
        self._last = self._begun = 0.0  # seconds of the last step; when this piece began
        self._deadline: float | None = None

    @property
    def pending(self) -> bool:
        """Whether a job waits or is half done."""
        return self._running is not None or bool(self._jobs) or bool(self._urgent)

    def add(self, work: Callable[[], T], urgent: bool = False) -> "Future[T]":
        """Queue `work`; what it returns or raises is the outcome of the future."""
        outcome: Future[T] = Future()
        (self._urgent if urgent else self._jobs).append(_Job(work, outcome))
        return outcome

    def pause(self) -> None:
        """A piece of the running job is done. Called from elsewhere it does nothing."""
        running = self._running
        if running is None or getcurrent() is not running:
            return
        if self._urgent:
            leave = True
        elif self._deadline is None:
            leave = self._due()
        else:
            now = time.perf_counter()
            self._piece.tell(now - self._begun)
            leave = now + self._piece.seconds > self._deadline
        if leave:
            self._steps.switch()
        self._begun = time.perf_counter()

    def earn(self, rows: int, step_seconds: float, noticed: bool = True) -> None:
        """A step of so many rows took so long: pieces may take their share of it. It is `noticed` by those
        who had a token before and wait for the next one; where all wait for their first one, it is not.
        """
        before = self._expected.get(rows, step_seconds)
        self._expected[rows] = before + LATEST * (step_seconds - before)
        self._last = step_seconds
        if noticed:
            self._step.tell(step_seconds)
        saved = self._credit if self.pending else min(self._credit, 0.0)
        self._credit = saved + self._allowance * step_seconds

    def advance(self, rows: int) -> None:
        """Compute pieces: before a step of `rows` as many as were earned, and until one is due if there is
        none.

        Pieces wait for short steps, which with them take no longer than slow ones without: what is
        noticed of writing is the share it takes, and hardly in the slowest tokens. Where there is no room
        beside any step, savings run over, and a piece is computed all the same.
        """
        self.attend()
        if not self.pending:
            return
        if not rows:
            self._deadline, self._credit = None, 0.0
            self._resume()
            return
        savings = SAVINGS * self._allowance * self._step.seconds
        room = min(self._credit, self._step.seconds - self._expected.get(rows, self._last))
        if room <= self._piece.seconds and self._credit <= savings:
            return
        begin = time.perf_counter()
        self._deadline = begin + room
        self._resume()
        self._credit -= time.perf_counter() - begin

    def finish(self) -> None:
        """Compute every job to its end."""
        self._deadline = float("inf")
        while self.pending:
            self.attend()
            self._resume()

    def fail(self, error: BaseException) -> None:
        """Nothing is computed any more: `error` is the outcome of every job, and raised in the one that is
        half done, so that it lets go of what it holds.
        """
        jobs = [*self._urgent, *self._jobs, *([self._job] if self._job else [])]
        self._urgent.clear()
        self._jobs.clear()
        running, self._running, self._job = self._running, None, None
        if running is not None:
            running.throw(error)
        for job in jobs:
            job.fail(error)

    def attend(self) -> None:
        """Do what is urgent."""
        while self._urgent:
            with torch.inference_mode(False):  # within a step, too
                self._urgent.popleft().run()

    def _resume(self) -> None:
        if self._running is None and not self._jobs:
            return
        if self._running is None:
            self._job = self._jobs.popleft()
            self._running = greenlet(self._job.run)
        self._steps = getcurrent()
        self._begun = time.perf_counter()
        self._running.switch()
        if self._running.dead:
            self._running = self._job = None
