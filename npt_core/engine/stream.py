"""One request as its caller holds it: events to read, from any thread, and a way to stop it."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from npt_core.engine.events import Event, FinishEvent


@dataclass(slots=True)
class StreamTimes:
    """Readings of `time.monotonic()`; `started` is when the first sequence left the queue."""

    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None


class Stream:
    """Events of one request with `n` sequences, pinned to `weights_version`.

    Iterate it from one thread, or `subscribe` a callback, not both. Each sequence ends with
    exactly one `FinishEvent`, whatever happens; events after it are dropped.
    """

    def __init__(self, n: int, weights_version: int) -> None:
        self.weights_version = weights_version
        self.times = StreamTimes()
        self._open = set(range(n))
        self._cancelled: set[int] = set()
        self._events: deque[Event] = deque()
        self._changed = threading.Condition()
        self._listener: Callable[[Event], None] | None = None

    def __iter__(self) -> Iterator[Event]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._events or not self._open)
                if not self._events:
                    return
                event = self._events.popleft()
            yield event

    def subscribe(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` with every event, those so far first, in order.

        It runs on the engine's threads, under the stream's lock: it must be quick, must not
        call back into the stream, and must not raise.
        """
        with self._changed:
            self._listener = listener
            while self._events:
                listener(self._events.popleft())

    def cancel(self, index: int | None = None) -> None:
        """Ask one sequence, or all, to end after the token in the making. Idempotent."""
        with self._changed:
            self._cancelled |= self._open if index is None else {index}

    def is_cancelled(self, index: int) -> bool:
        """Whether sequence `index` was asked to end."""
        return index in self._cancelled

    def is_open(self, index: int) -> bool:
        """Whether sequence `index` has not ended."""
        return index in self._open

    @property
    def finished(self) -> bool:
        """Whether every sequence has ended."""
        return not self._open

    def mark_started(self) -> None:
        """Note that the first sequence left the queue."""
        with self._changed:
            if self.times.started is None:
                self.times.started = time.monotonic()

    def put(self, event: Event) -> None:
        """Deliver `event`, unless its sequence has ended already."""
        with self._changed:
            if event.index not in self._open:
                return
            if isinstance(event, FinishEvent):
                self._open.discard(event.index)
            if self._listener is None:
                self._events.append(event)
            else:
                self._listener(event)
            self._changed.notify_all()
