"""The one way by which a bank reaches a version: the ledger's versions, in order, from stored bytes.

Start-up, our own writes and those of other processes all go through `catch_up`. Bytes are applied,
never computed again, and each version's chain hash is checked before it is published.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import structlog

from npt_core.bank import BankError, FactWeights, Fold
from service.blobs import BlobError, Blobs
from service.ledger import Fact, Ledger, LedgerDamaged, LedgerUnavailable, Version, VersionKind
from service.ledger.verify import chain_problem
from service.runtime import Bank, Compute, Weights
from service.weights_codec import UndecodableWeights, decode, decode_fold, decode_snapshot

log = structlog.get_logger(__name__)

POLL_S = 1.0
"""A notification that was lost is made up for after so long."""
BATCH = 500
"""Versions read from the ledger at once."""
TOGETHER = 8
"""Versions published at once beside readers, who wait for it; without any, as many as were read."""


def at_once(work: Callable[[], Any]) -> Any:
    """Where no engine runs yet."""
    return work()


class Replica:
    """Brings `bank` to the versions of `ledger`. Thread-safe.

    `compute` is where tensors are changed, `published` is called after new versions; both change when
    the engine starts (`serve`).
    """

    def __init__(self, ledger: Ledger, blobs: Blobs, bank: Bank) -> None:
        self._ledger, self._blobs, self._bank = ledger, blobs, bank
        self._compute: Compute = at_once
        self._published: Callable[[], None] = lambda: None
        self._together = BATCH
        self._lock = threading.Lock()
        self._last: Version | None = None
        self.folded: frozenset[str] = frozenset()
        """Facts that are in the base weights, and so not in the bank."""
        self._folded_weights: Mapping[str, Any] = {}
        self._newest_seen = 0
        self._stopping = threading.Event()
        self._follower: threading.Thread | None = None
        self.problem: str | None = None
        """Why the bank cannot follow the ledger; reads go on at the version it has."""
        self.reachable = True
        """Whether the database answered when it was last asked."""

    @property
    def lag(self) -> int:
        """Versions that the ledger was seen to have and the bank lacks."""
        return max(self._newest_seen - self._bank.version, 0)

    @property
    def version(self) -> int:
        """The bank's newest version of which `chain`, `fold` and `folded` tell, too."""
        return 0 if self._last is None else self._last.version

    @property
    def stamp(self) -> tuple[int, str]:
        """`version` and `chain` of the same moment."""
        last = self._last
        return (0, "") if last is None else (last.version, last.chain)

    @property
    def chain(self) -> str:
        """The chain hash of the bank's version."""
        return "" if self._last is None else self._last.chain

    @property
    def fold(self) -> str | None:
        """The blob of the fold in force."""
        return None if self._last is None else self._last.fold

    def catch_up(self, known: Mapping[str, Weights] | None = None) -> int:
        """Publish every version that the bank lacks; its newest version then.

        `known` are weights that need not be read again: those that the caller just stored.

        Raises:
            LedgerUnavailable: the database does not answer.
            BlobError: a blob is missing or damaged.
            LedgerDamaged: the history does not follow from what was applied, or does not fit the model.
        """
        with self._lock:
            before = self._bank.version
            if self._last is None:
                self._begin()
            while versions := self._following():
                full = len(versions) >= BATCH - 1
                self._newest_seen = self._ledger.newest if full else versions[-1].version
                facts = self._ledger.facts_by_id(id_ for version in versions for id_ in version.births)
                for run in self._runs(versions):
                    self._apply(run, facts, known or {})
                if not full:
                    break
            after = self._bank.version
        if after > before:
            self._published()
        return after

    def serve(self, compute: Compute, published: Callable[[], None]) -> None:
        """From now on an engine computes. Where others write, too, follow them."""
        self._compute, self._published, self._together = compute, published, TOGETHER
        if self._ledger.shared:
            self._follower = threading.Thread(target=self._follow, name="npt-follower", daemon=True)
            self._follower.start()

    def close(self, deadline: float) -> None:
        """Follow no more; waits until `deadline` (monotonic) where a database hangs."""
        self._stopping.set()
        if self._follower is not None:
            self._follower.join(max(deadline - time.monotonic(), 0))

    def _begin(self) -> None:
        """From the newest snapshot, if there is one: older versions are gone then."""
        snapshot = self._ledger.snapshot()
        if snapshot is None:
            return
        version = self._ledger.version(snapshot.version)
        if version is None or version.chain != snapshot.chain:
            raise LedgerDamaged(
                self._ledger.name, f"the snapshot of version {snapshot.version} is of another"
            )
        try:
            births = decode_snapshot(self._blobs.get(snapshot.blob))
        except UndecodableWeights as error:
            raise LedgerDamaged(self._ledger.name, f"blob of a snapshot: {error}") from error
        if set(births) != self._ledger.live(version.version):
            raise LedgerDamaged(self._ledger.name, "the snapshot does not hold the facts of its version")
        fold = self.load_fold(version.fold)
        outside = {id_: weights for id_, weights in births.items() if id_ not in fold.facts}
        deltas = fold.deltas or None
        self._publish(version, lambda: self._bank.publish(version.version, outside, (), deltas))
        self.folded = frozenset(fold.facts)
        self._compute(lambda: self._bank.retire(version.version, lambda: None))
        self._last = version

    def _publish(self, version: Version, publish: Callable[[], None]) -> None:
        try:
            self._compute(publish)
        except BankError as error:
            raise LedgerDamaged(self._ledger.name, f"version {version.version}: {error}") from error

    def _following(self) -> list[Version]:
        """Versions after the last one that was applied, which must still be what it was."""
        last = self._last
        if last is None:
            return self._ledger.versions(-1, BATCH)
        found = self._ledger.versions(last.version - 1, BATCH)
        if not found or found[0] != last:
            reason = f"version {last.version}, which was applied, is not there any more"
            raise LedgerDamaged(self._ledger.name, reason)
        return found[1:]

    def _runs(self, versions: Sequence[Version]) -> Iterator[list[Version]]:
        """Versions that can be published at once: those that follow each other and only bring new facts."""
        run: list[Version] = []
        fold = self.fold
        for version in versions:
            plain = version.kind is VersionKind.FACT and not version.deaths and version.fold == fold
            if run and not (plain and len(run) < self._together):
                yield run
                run = []
            run.append(version)
            if not plain:
                yield run
                run = []
            fold = version.fold
        if run:
            yield run

    def _apply(self, run: list[Version], facts: Mapping[str, Fact], known: Mapping[str, Weights]) -> None:
        if len(run) == 1:
            self._apply_one(run[0], facts, known)
            return
        born, problem = self._read(run, facts, known)
        if born:
            last = run[len(born) - 1]
            self._publish(last, lambda: self._bank.publish_all(born))
            self._last = last
        if problem is not None:
            raise problem

    def _read(
        self, run: Sequence[Version], facts: Mapping[str, Fact], known: Mapping[str, Weights]
    ) -> tuple[dict[int, Mapping[str, Weights]], Exception | None]:
        """What versions bring, as far as they are sound, and what the first one is not."""
        born: dict[int, Mapping[str, Weights]] = {}
        last, births = self._last, [id_ for version in run for id_ in version.births]
        unread = [facts[id_].blob for id_ in births if id_ in facts and id_ not in known]
        with closing(self._blobs.get_all(unread)) as blobs:
            try:
                for version in run:
                    self._check_chain(version, last, facts)
                    born[version.version] = {
                        id_: known[id_] if id_ in known else self._decoded(facts[id_], next(blobs))
                        for id_ in version.births
                    }
                    last = version
            except (BlobError, LedgerDamaged) as error:
                return born, error
        return born, None

    def _check_chain(self, version: Version, last: Version | None, facts: Mapping[str, Fact]) -> None:
        problem = chain_problem(version, last, facts)
        if problem is not None:
            raise LedgerDamaged(self._ledger.name, f"version {version.version}: {problem}")

    def _apply_one(self, version: Version, facts: Mapping[str, Fact], known: Mapping[str, Weights]) -> None:
        self._check_chain(version, self._last, facts)
        if version.version > 0:
            fold = None if version.fold == self.fold else self.load_fold(version.fold)
            born, dead = self.planned(version.births, version.deaths, fold)
            if returning := born - facts.keys() - known.keys():
                facts = dict(facts) | self._ledger.facts_by_id(returning)
            births = {id_: known[id_] if id_ in known else self.load(facts[id_]) for id_ in born}
            deltas = None if fold is None else fold.deltas
            self._publish(version, lambda: self._bank.publish(version.version, births, dead, deltas))
            if fold is not None:
                self.folded = frozenset(fold.facts)
        self._last = version

    def planned(
        self, births: Collection[str], deaths: Collection[str], fold: Fold | None
    ) -> tuple[set[str], set[str]]:
        """What is born and dies in the bank with a version: it holds the facts that are known and not folded.

        `fold` is the one of the version; `None`, the same as before. Raises LedgerDamaged where it holds a
        fact that is not known.
        """
        if fold is None:
            return set(births), set(deaths)
        inside, alive = frozenset(fold.facts), set(self._bank.facts)
        known = (alive | self.folded | set(births)) - set(deaths)
        if inside - known:
            raise LedgerDamaged(self._ledger.name, f"{min(inside - known)} is folded and not known")
        return known - inside - alive, alive - (known - inside)

    def load(self, fact: Fact) -> FactWeights:
        """The weights of a fact. Raises as `catch_up`."""
        return self._decoded(fact, self._blobs.get(fact.blob))

    def _decoded(self, fact: Fact, data: bytes) -> FactWeights:
        try:
            return decode(data)
        except UndecodableWeights as error:
            raise LedgerDamaged(self._ledger.name, f"blob of fact {fact.id}: {error}") from error

    def load_all(self, ids: Collection[str]) -> dict[str, FactWeights]:
        """The weights of facts. Raises as `catch_up`."""
        facts = self._ledger.facts_by_id(ids).values()
        with closing(self._blobs.get_all([fact.blob for fact in facts])) as blobs:
            return {fact.id: self._decoded(fact, data) for fact, data in zip(facts, blobs, strict=True)}

    def load_fold(self, blob: str | None) -> Fold:
        """What is folded into `down_proj`. Raises as `catch_up`."""
        if blob is None:
            return Fold({}, ())
        try:
            return decode_fold(self._blobs.get(blob))
        except UndecodableWeights as error:
            raise LedgerDamaged(self._ledger.name, f"blob of a fold: {error}") from error

    def folded_weights(self, ids: Collection[str]) -> Mapping[str, Any]:
        """The columns that facts had before they were folded, kept from one call to the next."""
        known = self._folded_weights  # several threads ask at once
        kept = {**known, **self.load_all(set(ids) - known.keys())}
        self._folded_weights = found = {id_: kept[id_] for id_ in ids}
        return found

    def _follow(self) -> None:
        while not self._stopping.is_set():
            try:
                with self._ledger.listening() as wait:
                    while not self._stopping.is_set():
                        self.catch_up()
                        self.reachable, self.problem = True, None
                        wait(POLL_S)
            except LedgerUnavailable as error:
                self._tell_once("reachable", str(error))
            except (BlobError, LedgerDamaged) as error:
                self._tell_once("problem", str(error))
            except Exception as error:  # a follower that ended would leave the replica behind unnoticed
                log.exception("cannot follow the ledger")
                self.problem = f"cannot follow the ledger: {type(error).__name__}"
            self._stopping.wait(POLL_S)

    def _tell_once(self, what: str, reason: str) -> None:
        known = not self.reachable if what == "reachable" else self.problem == reason
        if what == "reachable":
            self.reachable = False
        else:
            self.problem = reason
        if not known:
            log.error("cannot follow the ledger", reason=reason)
