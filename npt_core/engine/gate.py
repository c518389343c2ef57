"""Two kinds of work on one machine: reading goes first, writing gets a bounded share."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Lets a writer's work pass in small pieces between the engine's steps.

    The writer calls `turn` before each piece and `leave` after it: it goes on at once while no
    step is due, and otherwise waits until the writers' share of the time allows it. A step waits
    for the piece in the making, no longer. `share` is the part of the time that pieces may take beside steps.
    """

    def __init__(self, share: float = 0.2) -> None:
        if not 0 < share < 1:
            raise ValueError("share must be above 0 and below 1")
        self._allowance = share / (1 - share)  # seconds of pieces for each second of steps
        self._changed = threading.Condition()
        self._stepping = False
        self._busy = False
        self._credit = 0.0
        self._wanted = 0  # writers that wait for their turn
        self._piece: float | None = None  # when the writer's piece began

    @contextmanager
    def step(self) -> Iterator[None]:
        """The engine computes a step: no piece starts within."""
        with self._changed:
            self._busy = True
            # A writer who may go on does so first: the next step would start before it wakes up.
            self._changed.wait_for(lambda: self._piece is None and not (self._wanted and self._credit > 0))
            self._stepping = True
        begin = time.perf_counter()
        try:
            yield
        finally:
            with self._changed:
                self._stepping = False
                # What is not used does not add up: a burst of pieces would delay a token.
                earned = (time.perf_counter() - begin) * self._allowance
                self._credit = min(self._credit, 0.0) + earned
                self._changed.notify_all()

    def idle(self) -> None:
        """The engine has nothing to do: pieces follow one another."""
        with self._changed:
            self._busy = False
            self._changed.notify_all()

    def turn(self) -> None:
        """The writer's next piece may begin; `leave` ends it."""
        with self._changed:
            self._wanted += 1
            self._changed.wait_for(self._may_write)
            self._wanted -= 1
            self._piece = time.perf_counter()

    def leave(self) -> None:
        """The writer's piece is done."""
        with self._changed:
            if self._piece is not None:
                self._credit -= time.perf_counter() - self._piece
                self._piece = None
                self._changed.notify_all()

    def _may_write(self) -> bool:
        if self._stepping or self._piece is not None:
            return False
        return not self._busy or self._credit > 0
