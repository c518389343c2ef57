"""Jobs that wait for a worker: first come, first served, and never more than may wait."""

import threading
from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

from npt_core.engine.errors import EngineClosed, QueueFull

T = TypeVar("T")


class WaitingLine(Generic[T]):
    """A closable queue in front of `workers` workers, in which at most `capacity` jobs wait.

    A job that an idle worker can take at once does not count as waiting.
    """

    def __init__(self, workers: int, capacity: int) -> None:
        if workers < 1 or capacity < 0:
            raise ValueError("there must be at least 1 worker, and a capacity of at least 0")
        self._workers = workers
        self._capacity = capacity
        self._jobs: deque[T] = deque()
        self._running = 0
        self._closed = False
        self._changed = threading.Condition()

    @property
    def waiting(self) -> int:
        """Jobs that no worker has taken."""
        return len(self._jobs)

    @property
    def running(self) -> int:
        """Jobs taken and not done."""
        return self._running

    def put(self, jobs: Sequence[T]) -> None:
        """Admit all of `jobs` or none.

        Raises:
            QueueFull: they do not all fit.
            EngineClosed: after `close`.
        """
        with self._changed:
            if self._closed:
                raise EngineClosed
            idle = self._workers - self._running
            if len(self._jobs) + len(jobs) > self._capacity + idle:
                raise QueueFull(self._capacity)
            self._jobs.extend(jobs)
            self._changed.notify_all()

    def take(self) -> T | None:
        """The next job, as soon as there is one; `None` once closed. Pair with `done`."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            if not self._jobs:
                return None
            self._running += 1
            return self._jobs.popleft()

    def done(self) -> None:
        """A taken job has ended."""
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def close(self) -> list[T]:
        """Take no more jobs; returns those that still waited."""
        with self._changed:
            self._closed = True
            left = list(self._jobs)
            self._jobs.clear()
            self._changed.notify_all()
            return left
