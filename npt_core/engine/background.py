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

from greenlet import getcurrent, greenlet

T = TypeVar("T")


class Background:
    """Jobs, one after the other, in a share of the time beside steps, and all of it without steps.

    `due` tells whether a step waits. `add` may be called from any thread, the rest from one.
    """

    def __init__(self, share: float, due: Callable[[], bool]) -> None:
        if not 0 < share < 1:
            raise ValueError("share must be above 0 and below 1")
        self._allowance = share / (1 - share)  # seconds of pieces for each second of steps
        self._due = due
        self._jobs: deque[Callable[[], None]] = deque()
        self._running: greenlet | None = None
        self._steps = getcurrent()  # where `advance` was called
        self._credit = 0.0
        self._deadline: float | None = None

    @property
    def pending(self) -> bool:
        """Whether a job waits or is half done."""
        return self._running is not None or bool(self._jobs)

    def add(self, work: Callable[[], T]) -> "Future[T]":
        """Queue `work`; what it returns or raises is the outcome of the future."""
        outcome: Future[T] = Future()

        def job() -> None:
            try:
                result = work()
            except BaseException as error:  # told to whoever waits for it
                outcome.set_exception(error)
            else:
                outcome.set_result(result)

        self._jobs.append(job)
        return outcome

    def pause(self) -> None:
        """A piece of the running job is done. Called from elsewhere it does nothing."""
        running = self._running
        if running is None or getcurrent() is not running:
            return
        if self._due() if self._deadline is None else time.perf_counter() >= self._deadline:
            self._steps.switch()

    def earn(self, step_seconds: float) -> None:
        """A step took so long: pieces may take their share of it."""
        # What is not used does not add up: a burst of pieces would delay a token.
        self._credit = min(self._credit, 0.0) + step_seconds * self._allowance

    def advance(self, busy: bool) -> None:
        """Compute pieces: beside steps, while `busy`, as many as were earned; otherwise until one is due."""
        if not self.pending or (busy and self._credit <= 0):
            return
        begin = time.perf_counter()
        self._deadline = begin + self._credit if busy else None
        self._resume()
        self._credit = self._credit - (time.perf_counter() - begin) if busy else 0.0

    def finish(self) -> None:
        """Compute every job to its end."""
        self._deadline = float("inf")
        while self.pending:
            self._resume()

    def _resume(self) -> None:
        if self._running is None:
            self._running = greenlet(self._jobs.popleft())
        self._steps = getcurrent()
        self._running.switch()
        if self._running.dead:
            self._running = None
