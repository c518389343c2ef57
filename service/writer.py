"""The one place where history is made: consolidate, blob, ledger, bank, answer, one write after the other."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from secrets import token_hex
from typing import TypeVar

from opentelemetry import trace

from npt_core.bank import BankError, Fold, matched
from npt_core.consolidation import ConsolidationError, NotRecalled, Step, UnreadableFact
from npt_core.engine import VersionGone
from service.blobs import Blobs
from service.commands import (
    Added,
    AddFacts,
    Cancelled,
    Contended,
    Contradiction,
    FactAlreadyRetracted,
    FactNotFound,
    Folded,
    FoldFacts,
    KeyConflict,
    LongWrite,
    Moved,
    NewFact,
    OnConflict,
    ReadOnly,
    RefusedInBatch,
    Rehearsed,
    SelfContradiction,
    StaleVersion,
    UnknownVersion,
)
from service.conflicts import Overlap, disagreeing, overlap, report_of, superseded
from service.folding import Folds
from service.keys_in_flight import KeysInFlight
from service.ledger import (
    ANONYMOUS,
    SAME_FOLD,
    SYSTEM,
    Change,
    Fact,
    FactState,
    Ledger,
    LedgerDamaged,
    LedgerUnavailable,
    StaleParent,
    Version,
    VersionKind,
    now,
)
from service.metrics import Metrics
from service.replica import Replica
from service.runtime import Bank, Compute, Consolidated, Consolidator, Weights
from service.tracing import VERSION, span
from service.turns import Turns
from service.weights_codec import encode, encode_fold

T = TypeVar("T")
ATTEMPTS = 20
"""How often a write starts over because another replica published first. A fact's weights do not depend
on the version they land on, so only the ledger is asked again."""


class Writer:
    """Changes ledger, blobs and bank together: wholly, or not at all.

    The order is what makes an acknowledged fact durable: the blob, then the ledger that names
    it, then the bank, then the answer. `compute` is where the model's work is done.
    Thread-safe; raises the `WriteError`, `ConsolidationError`, `StorageError`, `BlobError` and
    `LedgerError` trees.
    """

    def __init__(
        self,
        ledger: Ledger,
        blobs: Blobs,
        bank: Bank,
        replica: Replica,
        consolidator: Consolidator,
        folds: Folds,
        metrics: Metrics,
        compute: Compute,
        *,
        max_pending: int = 16,
    ) -> None:
        self._ledger = ledger
        self._blobs = blobs
        self._bank = bank
        self._replica = replica
        self._consolidator = consolidator
        self._folds = folds
        self._metrics = metrics
        self._compute_anywhere = compute
        self._turns = Turns(metrics, max_pending)
        self._keys = KeysInFlight()
        self._under_way: LongWrite | None = None
        self._computing: LongWrite | None = None

    @property
    def read_only(self) -> str | None:
        """Why nothing can be written until restart."""
        return self._turns.failure

    def close(self, deadline: float) -> bool:
        """Refuse what waits; whether the write under way ended before `deadline` (monotonic)."""
        return self._turns.close(deadline)

    def stop_if_cancelled(self) -> None:
        """Called by consolidation between its pieces, whoever asked for it. Raises `Cancelled`."""
        if self._computing is not None and self._computing.cancelled.is_set():
            raise Cancelled

    def tell_step(self, step: Step) -> None:
        """Called by consolidation as each step begins."""
        if self._under_way is not None:
            self._under_way.tell(step)

    def add(self, command: AddFacts) -> Added:
        """Write facts, or answer as before where the key has been used with the same body."""
        with self._key_reserved(command):
            replayed = self._replayed(command)
            if replayed is not None:
                return replayed
            with self._counted(command), self._learning(command):
                fresh = self._consolidate(command.facts)
                command.tell(Step.PUBLISH)
                blobs = self._store(fresh)
                with self._turns.making_of_what_was_learned():
                    added = self._until_newest(lambda: self._add(command, fresh, blobs))
            if not added.replayed:
                self._count(fresh)
            return added

    def rehearse(self, command: AddFacts) -> Rehearsed:
        """All that `add` would do and measure, except for writing it."""
        with self._learning(command):
            fresh = self._consolidate(command.facts)
            newest = self._bank.version
            overlaps = [self._overlap(each) for each in fresh]
            conflicts = {id_ for found in overlaps for id_ in found.contradicted}
            self._metrics.facts.labels("dry_run").inc(len(fresh))
            reports = tuple(report_of(each, found) for each, found in zip(fresh, overlaps, strict=True))
            return Rehearsed(newest, reports, tuple(sorted(conflicts)))

    def retract(self, fact_id: str, if_match: int | None = None, actor: str = ANONYMOUS) -> Moved:
        """A new version that does not know the fact."""
        with self._making(if_match):
            version = self._until_newest(lambda: self._retract(fact_id, if_match, actor))
            self._metrics.facts.labels("retracted").inc()
            return Moved(version)

    def expire(self, moment: str) -> Version | None:
        """A new version without the facts whose time had come at `moment`, if there are any. However many
        writers wait, there is a place for it.
        """
        with span("write"), self._turns.making():
            version = self._until_newest(lambda: self._expire(moment))
            if version is not None:
                self._metrics.facts.labels("expired").inc(len(version.deaths))
            return version

    def activate(self, target: int, if_match: int | None = None, actor: str = ANONYMOUS) -> Moved:
        """A new version that knows exactly what version `target` knew."""
        with self._making(if_match):
            return Moved(self._until_newest(lambda: self._activate(target, if_match, actor)))

    def fold(self, command: FoldFacts, dry_run: bool = False) -> Folded:
        """A new version whose base weights hold facts that before were in the bank."""
        with self._key_reserved(command):
            replayed = self._replayed_fold(command)
            if replayed is not None:
                return replayed
            with self._learning(command), self._turns.making_of_what_was_learned():
                return self._until_newest(lambda: self._fold(command, dry_run))

    def _add(self, command: AddFacts, fresh: Sequence[Consolidated], blobs: Sequence[str]) -> Added:
        replayed = self._replayed(command)
        if replayed is not None:
            return replayed
        self._check_match(command.if_match)
        overlaps = [self._overlap(each) for each in fresh]
        deaths = superseded(command.facts, overlaps)
        parent, moment = self._bank.version, now()
        # In the order of the request also where they are sorted, as when an answer is repeated.
        ids = sorted(f"fact_{token_hex(8)}" for _ in fresh)
        facts = tuple(
            Fact(
                id=id_,
                version=parent + 1,
                request=new.document,
                report=report_of(each, found),
                blob=blob,
                created_at=moment,
                expires_at=new.expires_at,
            )
            for id_, new, each, found, blob in zip(ids, command.facts, fresh, overlaps, blobs, strict=True)
        )
        births = {fact.id: each.weights for fact, each in zip(facts, fresh, strict=True)}
        if command.cancelled.is_set():
            raise Cancelled
        change = Change(
            parent,
            VersionKind.FACT,
            births=tuple(births),
            deaths=deaths,
            new_facts=facts,
            key=command.key,
            actor=command.actor,
            fold=self._fold_without(deaths),
        )
        return Added(self._commit(change, births), facts)

    def _overlap(self, fresh: Consolidated) -> Overlap:
        inside = self._replica.folded_weights(self._replica.folded)
        matches = self._compute(
            lambda: [*self._bank.matches(fresh.asked, firing=True), *matched(inside, fresh.asked)]
        )
        return overlap(fresh, matches, self._ledger.facts_by_id)

    def _retract(self, fact_id: str, if_match: int | None, actor: str) -> Version:
        self._check_match(if_match)
        stored = self._ledger.fact(fact_id)
        if stored is None:
            raise FactNotFound(fact_id)
        if stored.state is FactState.RETRACTED:
            raise FactAlreadyRetracted(fact_id, stored.died or 0)
        return self._commit(self._retraction((fact_id,), actor), {})

    def _expire(self, moment: str) -> Version | None:
        due = tuple(id_ for _, id_ in self._ledger.expiring(moment))
        if not due:  # perhaps another replica came first
            return None
        return self._commit(self._retraction(due, SYSTEM), {})

    def _retraction(self, deaths: tuple[str, ...], actor: str) -> Change:
        fold = self._fold_without(deaths)
        return Change(self._bank.version, VersionKind.RETRACT, deaths=deaths, actor=actor, fold=fold)

    def _fold(self, command: FoldFacts, dry_run: bool) -> Folded:
        replayed = self._replayed_fold(command)
        if replayed is not None:
            return replayed
        self._check_match(command.if_match)
        newest = self._bank.version
        fold, report = self._folds.examined(command, newest, self._compute)
        if dry_run:
            return Folded(self._version(newest), fold.facts, report.as_dict())
        blob = self._store_fold(fold)
        if command.cancelled.is_set():
            raise Cancelled
        change = Change(newest, VersionKind.FOLD, key=command.key, actor=command.actor, fold=blob)
        return Folded(self._commit(change, {}), fold.facts, report.as_dict())

    def _fold_without(self, deaths: Collection[str]) -> str | None:
        """What is folded after facts have died: as before, or made again without them."""
        left = self._replica.folded - set(deaths)
        if left == self._replica.folded:
            return SAME_FOLD
        return self._store_fold(self._folds.of(left, self._compute_anywhere)) if left else None

    def _store_fold(self, fold: Fold) -> str:
        with self._timed("blob"), self._turns.fatal_if_storage_fails():
            return self._blobs.put(encode_fold(fold))

    def _replayed_fold(self, command: FoldFacts) -> Folded | None:
        number = self._version_of(command)
        if number is None:
            return None
        self._refuse_what_may_not_last(number)
        version = self._version(number)
        return Folded(version, self._replica.load_fold(version.fold).facts, None, replayed=True)

    def _version(self, number: int) -> Version:
        found = self._ledger.version(number)
        if found is None:
            raise LookupError(f"version {number} is missing")
        return found

    def _activate(self, target: int, if_match: int | None, actor: str) -> Version:
        self._check_match(if_match)
        newest, snapshot = self._bank.version, self._ledger.snapshot()
        if snapshot is not None and 0 <= target < snapshot.version:
            raise VersionGone(target, snapshot.version, newest)
        found = self._ledger.version(target) if 0 <= target <= newest else None
        if found is None:
            raise UnknownVersion(target, newest)
        then, today = self._ledger.live(target), self._ledger.live(newest)
        births, deaths = then - today, today - then
        change = Change(
            newest,
            VersionKind.ROLLBACK,
            tuple(births),
            tuple(deaths),
            target=target,
            actor=actor,
            fold=found.fold,
        )
        return self._commit(change, self._replica.load_all(births))

    def _until_newest(self, attempt: Callable[[], T]) -> T:
        """What `attempt` gives on top of the newest version, whoever else writes."""
        for _ in range(ATTEMPTS):
            self._replica.catch_up()
            try:
                return attempt()
            except StaleParent:
                continue
        raise Contended(ATTEMPTS)

    def _commit(self, change: Change, births: Mapping[str, Weights]) -> Version:
        """Ledger first: what the bank serves must survive a restart. What the bank would refuse must not."""
        fold = None if change.fold == SAME_FOLD else self._replica.load_fold(change.fold)
        try:
            births = self._checked(change, births, fold)
        except (BankError, LedgerDamaged) as error:
            if self._bank.version == change.parent:
                raise
            # What did not fit is a version of another replica, which was published meanwhile.
            raise StaleParent(change.parent, self._bank.version) from error
        with self._timed("ledger"), self._turns.fatal_if_storage_fails():
            version = self._ledger.commit(change, lambda: self._ensure_blobs(change, births, fold))
        trace.get_current_span().set_attribute(VERSION, version.version)
        with self._timed("publish"):
            try:
                self._replica.catch_up(births)
            except LedgerUnavailable:
                pass  # it is committed: the follower publishes it when the database answers again
            except Exception:
                # The ledger is ahead of the bank; only a replay brings them together again.
                self._turns.fail(f"version {version.version} could not be published")
                raise
        return version

    def _checked(
        self, change: Change, births: Mapping[str, Weights], fold: Fold | None
    ) -> Mapping[str, Weights]:
        """The weights of all that is born in the bank with the change, which fits it. Raises BankError,
        LedgerDamaged.
        """
        born, dead = self._replica.planned(change.births, change.deaths, fold)
        births = {**births, **self._replica.load_all(born - births.keys())}
        deltas = None if fold is None else fold.deltas
        self._bank.check(change.parent + 1, {id_: births[id_] for id_ in born}, dead, deltas)
        return births

    def _ensure_blobs(self, change: Change, births: Mapping[str, Weights], fold: Fold | None) -> None:
        """What was stored may have been an orphan's bytes that were collected meanwhile."""
        for fact in change.new_facts:
            if fact.blob not in self._blobs:
                self._blobs.put(encode(births[fact.id]))
        if fold is not None and change.fold is not None and change.fold not in self._blobs:
            self._blobs.put(encode_fold(fold))

    def _consolidate(self, facts: Sequence[NewFact]) -> list[Consolidated]:
        with self._timed("consolidate"):
            outcomes = self._compute(
                lambda: self._consolidator.consolidate_all([new.request for new in facts])
            )
        fresh = [each for each in outcomes if not isinstance(each, ConsolidationError)]
        refused = {i: each for i, each in enumerate(outcomes) if isinstance(each, ConsolidationError)}
        for error in refused.values():
            self._metrics.facts.labels(_refusal(error)).inc()
        if refused:
            raise refused[0] if len(facts) == 1 else RefusedInBatch(refused)
        if len(fresh) > 1:
            self._check_together(facts, fresh)
        for each in fresh:
            for stage, seconds in each.report.timings.items():
                self._metrics.fact_write.labels(stage).observe(seconds)
        return fresh

    def _check_together(self, facts: Sequence[NewFact], fresh: Sequence[Consolidated]) -> None:
        """Facts of a batch were written apart; together they must neither disagree nor disturb each other."""
        firm = [i for i, new in enumerate(facts) if new.on_conflict is not OnConflict.ALLOW]
        sentences = [facts[i].request.fact for i in firm]
        pair = self._compute(lambda: disagreeing([fresh[i] for i in firm], sentences))
        if pair is not None:
            raise SelfContradiction(firm[pair[0]], firm[pair[1]])
        disturbed = self._compute(lambda: self._consolidator.disturbed(fresh))
        if disturbed:
            self._metrics.facts.labels("not_recalled").inc(len(disturbed))
            raise RefusedInBatch(disturbed)

    def _store(self, fresh: Sequence[Consolidated]) -> list[str]:
        with self._timed("blob"), self._turns.fatal_if_storage_fails():
            return [self._blobs.put(encode(each.weights)) for each in fresh]

    @contextmanager
    def _counted(self, command: AddFacts) -> Iterator[None]:
        try:
            yield
        except (Contradiction, SelfContradiction):
            self._metrics.facts.labels("conflict").inc(len(command.facts))
            raise
        except Cancelled:
            self._metrics.facts.labels("cancelled").inc(len(command.facts))
            raise

    def _count(self, fresh: Sequence[Consolidated]) -> None:
        self._metrics.facts.labels("published").inc(len(fresh))
        for each in fresh:
            self._metrics.fact_recall.observe(each.report.recall_after)
            self._metrics.drift.observe(each.report.drift)

    def _replayed(self, command: AddFacts) -> Added | None:
        number = self._version_of(command)
        if number is None:
            return None
        self._refuse_what_may_not_last(number)
        return replace(added_in(self._ledger, number), replayed=True)

    def _refuse_what_may_not_last(self, number: int) -> None:
        """A commit that failed can be seen in the ledger, and a power cut may still undo it."""
        if self._turns.failure is not None and number > self._bank.version:
            raise ReadOnly(self._turns.failure)

    def _version_of(self, command: LongWrite) -> int | None:
        """The version that an earlier request with the same key made. Raises `KeyConflict`."""
        found = None if command.key is None else self._ledger.find_key(command.actor, command.key.key)
        if found is None:
            return None
        key, number = found
        if key != command.key:
            raise KeyConflict
        return number

    @contextmanager
    def _key_reserved(self, command: LongWrite) -> Iterator[None]:
        if command.key is None:
            yield
            return
        with self._keys.reserved(command.actor, command.key.key):
            yield

    @contextmanager
    def _cancellable(self, command: LongWrite) -> Iterator[None]:
        if command.cancelled.is_set():
            raise Cancelled
        self._under_way = command
        try:
            yield
        finally:
            self._under_way = None

    @contextmanager
    def _learning(self, command: LongWrite) -> Iterator[None]:
        """The turn of one that learns, which another can cancel."""
        self._check_match(command.if_match)  # at once, and again after others had their turns
        with span("write"), self._turns.place(), self._turns.learning(), self._cancellable(command):
            self._check_match(command.if_match)
            yield

    @contextmanager
    def _making(self, if_match: int | None) -> Iterator[None]:
        """The turn of one that makes a version without learning anything."""
        self._check_match(if_match)
        with span("write"), self._turns.place(), self._turns.making():
            self._check_match(if_match)
            yield

    def _compute(self, work: Callable[[], T]) -> T:
        """For the write under way, which can be cancelled between two pieces of `work`."""
        command = self._under_way

        def own() -> T:
            self._computing = command
            try:
                return work()
            finally:
                self._computing = None

        return self._compute_anywhere(own)

    def _check_match(self, if_match: int | None) -> None:
        if if_match is not None and if_match != self._bank.version:
            raise StaleVersion(if_match, self._bank.version)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        with span(stage), self._metrics.fact_write.labels(stage).time():
            yield


def added_in(ledger: Ledger, number: int) -> Added:
    """What a version that a write made began to know."""
    version = ledger.version(number)
    if version is None:
        raise LookupError(f"version {number} of an idempotency key is missing")
    facts = ledger.facts_by_id(version.births).values()
    return Added(version, tuple(sorted(facts, key=lambda fact: fact.id)))


def _refusal(error: ConsolidationError) -> str:
    named: dict[type[ConsolidationError], str] = {UnreadableFact: "unreadable", NotRecalled: "not_recalled"}
    return named.get(type(error), "invalid")
