"""The one place where history is made: consolidate, blob, ledger, bank, answer, under one lock."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from secrets import token_hex

from npt_core.consolidation import ConsolidationError, NotRecalled, UnreadableFact
from service.blobs import BlobStore
from service.commands import (
    Added,
    AddFact,
    FactAlreadyRetracted,
    FactNotFound,
    KeyConflict,
    Moved,
    ReadOnly,
    Rehearsed,
    StaleVersion,
    TooManyWrites,
    UnknownVersion,
)
from service.keys_in_flight import KeysInFlight
from service.ledger import Change, Fact, FactState, Ledger, Version, VersionKind, now
from service.metrics import Metrics
from service.runtime import Bank, Compute, Consolidated, Consolidator, Weights
from service.storage import StorageFailed
from service.weights_codec import decode, encode


class Writer:
    """Changes ledger, blobs and bank together: wholly, or not at all.

    The order is what makes an acknowledged fact durable: the blob, then the ledger that names
    it, then the bank, then the answer. `compute` is where the model's work is done; `published` is
    called after each new version.
    Thread-safe; raises the `WriteError`, `ConsolidationError`, `StorageError` and `BlobError`
    trees.
    """

    def __init__(
        self,
        ledger: Ledger,
        blobs: BlobStore,
        bank: Bank,
        consolidator: Consolidator,
        metrics: Metrics,
        compute: Compute,
        *,
        max_pending: int = 16,
        published: Callable[[], None] = lambda: None,
    ) -> None:
        self._ledger = ledger
        self._blobs = blobs
        self._bank = bank
        self._consolidator = consolidator
        self._metrics = metrics
        self._compute = compute
        self._published = published
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(max_pending)
        self._max_pending = max_pending
        self._keys = KeysInFlight()
        self._failure: str | None = None

    def close(self) -> None:
        """Refuse what waits, and wait for the write under way: afterwards the folder is at rest."""
        self._failure = self._failure or "the server is shutting down"
        with self._lock:
            pass

    def add(self, command: AddFact) -> Added:
        """Write a fact, or answer as before where its key has been used with the same body."""
        with self._key_reserved(command):
            replayed = self._replayed(command)
            if replayed is not None:
                return replayed
            with self._writing(command.if_match):
                consolidated = self._consolidate(command)
                fact = self._publish_fact(command, consolidated)
            self._metrics.facts.labels("published").inc()
            self._metrics.fact_recall.observe(consolidated.report.recall_after)
            self._metrics.drift.observe(consolidated.report.drift)
            return Added(fact)

    def rehearse(self, command: AddFact) -> Rehearsed:
        """All that `add` would do and measure, except for writing it."""
        with self._writing(command.if_match):
            consolidated = self._consolidate(command)
            self._metrics.facts.labels("dry_run").inc()
            return Rehearsed(self._bank.version, consolidated.report.as_dict())

    def retract(self, fact_id: str, if_match: int | None = None) -> Moved:
        """A new version that does not know the fact."""
        with self._writing(if_match):
            stored = self._ledger.fact(fact_id)
            if stored is None:
                raise FactNotFound(fact_id)
            if stored.state is FactState.RETRACTED:
                raise FactAlreadyRetracted(fact_id, stored.died or 0)
            version = self._commit(Change(self._bank.version, VersionKind.RETRACT, deaths=(fact_id,)), {})
            self._metrics.facts.labels("retracted").inc()
            return Moved(version)

    def activate(self, target: int, if_match: int | None = None) -> Moved:
        """A new version that knows exactly what version `target` knew."""
        with self._writing(if_match):
            newest = self._bank.version
            if not 0 <= target <= newest:
                raise UnknownVersion(target, newest)
            then, today = self._ledger.live(target), self._ledger.live(newest)
            births, deaths = then - today, today - then
            change = Change(newest, VersionKind.ROLLBACK, tuple(births), tuple(deaths), target=target)
            return Moved(self._commit(change, self.load(births)))

    def load(self, fact_ids: Iterable[str]) -> dict[str, Weights]:
        """The weights of facts, from their blobs. Raises the `BlobError` tree."""
        stored = {fact_id: self._ledger.fact(fact_id) for fact_id in fact_ids}
        return {
            fact_id: decode(self._blobs.get(found.fact.blob))
            for fact_id, found in stored.items()
            if found is not None
        }

    def _publish_fact(self, command: AddFact, consolidated: Consolidated) -> Fact:
        with self._timed("blob"), self._fatal_if_storage_fails():
            blob = self._blobs.put(encode(consolidated.weights))
        version = self._bank.version
        fact = Fact(
            id=f"fact_{token_hex(8)}",
            version=version + 1,
            request=command.document,
            report=consolidated.report.as_dict(),
            blob=blob,
            created_at=now(),
        )
        change = Change(version, VersionKind.FACT, births=(fact.id,), new_fact=fact, key=command.key)
        self._commit(change, {fact.id: consolidated.weights})
        return fact

    def _commit(self, change: Change, births: Mapping[str, Weights]) -> Version:
        """Ledger first: what the bank serves must survive a restart. What the bank would refuse must not."""
        self._bank.check(change.parent + 1, births, change.deaths)
        with self._timed("ledger"), self._fatal_if_storage_fails():
            version = self._ledger.commit(change)
        with self._timed("publish"):
            try:
                self._compute(lambda: self._bank.publish(version.version, births, change.deaths))
            except Exception:
                # The ledger is ahead of the bank; only a replay brings them together again.
                self._failure = f"version {version.version} could not be published"
                raise
        self._published()
        return version

    def _consolidate(self, command: AddFact) -> Consolidated:
        try:
            with self._timed("consolidate"):
                consolidated = self._compute(lambda: self._consolidator.consolidate(command.request))
        except ConsolidationError as error:
            self._metrics.facts.labels(_refusal(error)).inc()
            raise
        for stage, seconds in consolidated.report.timings.items():
            self._metrics.fact_write.labels(stage).observe(seconds)
        return consolidated

    def _replayed(self, command: AddFact) -> Added | None:
        found = None if command.key is None else self._ledger.find_key(command.key.key)
        if found is None:
            return None
        key, stored = found
        if key != command.key:
            raise KeyConflict
        return Added(stored.fact, replayed=True)

    @contextmanager
    def _key_reserved(self, command: AddFact) -> Iterator[None]:
        if command.key is None:
            yield
            return
        with self._keys.reserved(command.key.key):
            yield

    @contextmanager
    def _writing(self, if_match: int | None) -> Iterator[None]:
        """The write lock, for one of a bounded number of writers."""
        if not self._places.acquire(blocking=False):
            self._metrics.rejections.labels("too_many_writes").inc()
            raise TooManyWrites(self._max_pending)
        try:
            asked = time.perf_counter()
            with self._lock:
                self._metrics.lock_wait.observe(time.perf_counter() - asked)
                self._check_writable(if_match)
                yield
        finally:
            self._places.release()

    def _check_writable(self, if_match: int | None) -> None:
        if self._failure is not None:
            raise ReadOnly(self._failure)
        if if_match is not None and if_match != self._bank.version:
            raise StaleVersion(if_match, self._bank.version)

    @contextmanager
    def _fatal_if_storage_fails(self) -> Iterator[None]:
        """After a failed fsync the disk's content is unknown: go on reading, write no more."""
        try:
            yield
        except StorageFailed as error:
            self._failure = str(error)
            raise

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        with self._metrics.fact_write.labels(stage).time():
            yield


def _refusal(error: ConsolidationError) -> str:
    if isinstance(error, UnreadableFact):
        return "unreadable"
    return "not_recalled" if isinstance(error, NotRecalled) else "invalid"
