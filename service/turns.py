"""Whose turn it is to write: the locks of writers, and how many may wait for them."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from service.commands import ReadOnly, TooManyWrites
from service.metrics import Metrics
from service.storage import StorageFailed
from service.tracing import span

log = structlog.get_logger(__name__)

CLOSED = "the server is shutting down"


class Turns:
    """Facts are learned one at a time, and versions made one at a time. Learning takes seconds, making a
    version milliseconds: a retraction or a rollback does not wait for what is being learned. Who needs both
    takes the turn to learn first. Thread-safe.
    """

    def __init__(self, metrics: Metrics, max_pending: int) -> None:
        self._metrics = metrics
        self._learning, self._making = threading.Lock(), threading.Lock()
        self._places = threading.BoundedSemaphore(max_pending)
        self._max_pending = max_pending
        self._closing = False
        self.failure: str | None = None
        """Why nothing can be written until restart."""

    def fail(self, reason: str) -> None:
        """From now on nothing is written until restart."""
        if self.failure is None:
            log.error("nothing is written any more until restart", reason=reason)
            self.failure = reason

    def close(self, deadline: float) -> bool:
        """Refuse what waits; whether those whose turn it is ended before `deadline` (monotonic)."""
        self._closing = True
        ended = _free(self._learning, deadline) and _free(self._making, deadline)
        self.failure = self.failure or CLOSED
        if not ended:
            # A disk or a store hangs; nothing was acknowledged.
            log.warning("a write is left behind")
        return ended

    @contextmanager
    def place(self) -> Iterator[None]:
        """One of a bounded number of writers. Raises `TooManyWrites`."""
        if not self._places.acquire(blocking=False):
            self._metrics.rejections.labels("too_many_writes").inc()
            raise TooManyWrites(self._max_pending)
        try:
            yield
        finally:
            self._places.release()

    @contextmanager
    def learning(self) -> Iterator[None]:
        """The only one that learns. Raises `ReadOnly`."""
        with self._waited_for(self._learning):
            yield

    @contextmanager
    def making(self) -> Iterator[None]:
        """The only one that makes a version. Raises `ReadOnly`."""
        with self._waited_for(self._making):
            yield

    @contextmanager
    def making_of_what_was_learned(self) -> Iterator[None]:
        """As `making`, for who has the turn to learn, also while the server shuts down."""
        with self._making:
            self._refuse_if(self.failure)
            yield

    @contextmanager
    def fatal_if_storage_fails(self) -> Iterator[None]:
        """After a failed fsync the disk's content is unknown: go on reading, write no more."""
        try:
            yield
        except StorageFailed as error:
            self.fail(str(error))
            raise

    @contextmanager
    def _waited_for(self, lock: threading.Lock) -> Iterator[None]:
        with span("lock"):
            asked = time.perf_counter()
            lock.acquire()
        try:
            self._metrics.lock_wait.observe(time.perf_counter() - asked)
            self._refuse_if(self.failure or (CLOSED if self._closing else None))
            yield
        finally:
            lock.release()

    def _refuse_if(self, reason: str | None) -> None:
        if reason is not None:
            raise ReadOnly(reason)


def _free(lock: threading.Lock, deadline: float) -> bool:
    """Whether nobody holds `lock` any more, by then."""
    if not lock.acquire(timeout=max(deadline - time.monotonic(), 0)):
        return False
    lock.release()
    return True
