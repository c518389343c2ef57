"""The ledger: which facts each version knows, append-only and hash-chained."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, insert, select
from sqlalchemy.exc import CompileError, DatabaseError, IntegrityError, StatementError
from sqlalchemy.exc import TimeoutError as NoneFree

from service.ledger import migrations, queries, rows, tables
from service.ledger.chain import audit_hash, chain_hash
from service.ledger.checksums import checksum_problem, sound, with_checksum
from service.ledger.database import connect, integrity_problem, is_shared, name_of, reading, writing
from service.ledger.errors import LedgerDamaged, LedgerTooNew, LedgerUnavailable, StaleParent, WrongCheckpoint
from service.ledger.records import (
    MAX_VERSION,
    SAME_FOLD,
    AuditEntry,
    Change,
    Fact,
    FactState,
    IdempotencyKey,
    Snapshot,
    StoredFact,
    Version,
    VersionKind,
)
from service.ledger.verify import audit_problem, history_problem

CHANNEL = "npt_versions"
"""Where PostgreSQL tells other processes of a new version."""
_SCHEMA = 0x6E7074
"""An advisory lock of PostgreSQL, for the making of the tables."""
_BLOBS = 0x6E7075
"""Another: held by commits together, and alone by whoever deletes blobs."""


def nothing() -> None:
    """Needs no blob."""


class Position(NamedTuple):
    """Where a page of facts ended."""

    version: int
    id: str


START = Position(-1, "")
END = Position(MAX_VERSION, "")


def now() -> str:
    """This moment, UTC, in RFC 3339."""
    return timestamp(datetime.now(UTC))


def timestamp(moment: datetime) -> str:
    """A moment with its offset, as UTC in RFC 3339: such texts sort as the moments do."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Ledger:
    """Facts and versions in one database, by its URL (see `database`).

    Reading is thread-safe. The writers of one process must take turns; of those of several, the first
    wins, and the others are told (`StaleParent`).

    Raises:
        LedgerDamaged: the file or its history is not as it was written.
        LedgerTooNew: a later release wrote it.
        LedgerUnavailable: the database does not answer.
    """

    def __init__(self, url: str) -> None:
        self.name = name_of(url)
        self.engine = connect(url)
        try:
            self._prepare_schema()
            self._verify()
        except migrations.UnknownRevision as error:
            raise LedgerTooNew(self.name, str(error)) from error
        except (DatabaseError, TypeError, ValueError) as error:
            reason = error.orig if isinstance(error, DatabaseError) else error
            raise LedgerDamaged(self.name, " ".join(str(reason).split())) from error

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    @property
    def shared(self) -> bool:
        """Whether other processes may write, too."""
        return is_shared(self.engine)

    @contextmanager
    def listening(self) -> Iterator[Callable[[float], None]]:
        """Within the block, what it gives waits so many seconds for a version of another process, or less
        where one came.

        Raises:
            LedgerUnavailable: the connection is lost, or there is none.
        """
        try:
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql(f"LISTEN {CHANNEL}")
                raw: Any = connection.connection.driver_connection
                try:
                    yield lambda seconds: _wait(raw, seconds)
                finally:
                    connection.invalidate()  # a connection that listens is nobody else's
        except (DatabaseError, NoneFree, self.engine.dialect.loaded_dbapi.Error) as error:
            raise LedgerUnavailable(self.name, " ".join(str(error).split())) from error

    def bind(self, base: str) -> None:
        """Tie the ledger to the checkpoint with fingerprint `base`; an empty one begins here.

        Raises:
            WrongCheckpoint: it belongs to another.
        """
        first = self.version(0)
        if first is None:
            blank = Version(0, None, VersionKind.BASE, (), (), base, None, now(), "")
            self._begin(replace(blank, chain=chain_hash(None, blank, {})), base)
        elif first.base != base:
            raise WrongCheckpoint(self.name)

    @property
    def newest(self) -> int:
        """The newest version; the ledger must be bound."""
        with reading(self.engine) as connection:
            return queries.newest(connection) or 0

    def version(self, number: int) -> Version | None:
        """One version."""
        found = self.versions(number - 1, 1)
        return found[0] if found and found[0].version == number else None

    def versions(self, after: int = -1, limit: int | None = None) -> list[Version]:
        """Versions above `after`, ascending."""
        with reading(self.engine) as connection:
            return queries.versions_after(connection, after, limit)

    def versions_before(self, before: int, limit: int | None = None) -> list[Version]:
        """Versions below `before`, descending."""
        with reading(self.engine) as connection:
            return queries.versions_before(connection, before, limit)

    def live(self, version: int) -> set[str]:
        """Ids of the facts that `version` knows."""
        with reading(self.engine) as connection:
            return queries.live(connection, version)

    def fact(self, fact_id: str) -> StoredFact | None:
        """One fact."""
        with reading(self.engine) as connection:
            return queries.stored_fact(connection, fact_id)

    def facts(
        self,
        after: Position = START,
        limit: int | None = None,
        state: FactState | None = None,
        newest_first: bool = False,
    ) -> list[StoredFact]:
        """Facts after a position, which for the newest is `END`, optionally only those in one state."""
        with reading(self.engine) as connection:
            return queries.stored_facts(connection, after, limit, state, newest_first)

    def facts_by_id(self, ids: Iterable[str]) -> dict[str, Fact]:
        """Those of `ids` that there are."""
        with reading(self.engine) as connection:
            return queries.facts_by_id(connection, ids)

    def expiring(self, until: str | None = None) -> list[tuple[str, str]]:
        """When living facts expire (by `until`), and their ids, the next one first."""
        with reading(self.engine) as connection:
            return queries.expiring(connection, until)

    def find_key(self, actor: str, key: str) -> tuple[IdempotencyKey, int] | None:
        """An idempotency key that the actor used, and the version that it made."""
        table = tables.idempotency
        query = select(table).where(table.c.actor == actor, table.c.key == key)
        with reading(self.engine) as connection:
            row = connection.execute(query).mappings().first()
            if row is None:
                return None
            sound(connection, table, row)
        return IdempotencyKey(row["key"], row["digest"]), row["version"]

    def snapshot(self) -> Snapshot | None:
        """The newest one."""
        with reading(self.engine) as connection:
            return queries.last_snapshot(connection)

    def add_snapshot(
        self, version: int, blob: str, actor: str, ensure_blobs: Callable[[], None] = nothing
    ) -> None:
        """From now on start-up begins at `version`, with the facts in `blob`; `ensure_blobs` as in `commit`.

        Raises:
            StaleParent: another process made one at the same moment.
        """
        found = self.version(version)
        if found is None:
            raise LookupError(f"there is no version {version}")
        row = {"version": version, "blob": blob, "chain": found.chain, "created_at": now()}
        try:
            with writing(self.engine) as connection:
                self._keep_blobs(connection, ensure_blobs)
                connection.execute(insert(tables.snapshots), with_checksum(tables.snapshots, row))
                record(connection, actor, "snapshot", f"versions/{version}", {"blob": blob})
        except IntegrityError as error:
            raise StaleParent(version, self.newest) from error

    def blobs(self) -> set[str]:
        """Names of the blobs that are needed by the newest snapshot and the versions after it."""
        with reading(self.engine) as connection:
            return queries.needed_blobs(connection)

    @contextmanager
    def without_commits(self) -> Iterator[set[str]]:
        """Within the block, what is committed waits, and the blobs that it gives are all that are needed.

        Raises:
            StorageError, LedgerUnavailable: see `database.writing`.
        """
        with writing(self.engine) as connection:
            if self.shared:
                connection.execute(select(func.pg_advisory_xact_lock(_BLOBS)))
            yield queries.needed_blobs(connection)

    def dump(self) -> tuple[dict[str, list[dict[str, Any]]], set[str]]:
        """Every row of history by table, and the blobs that it needs (as `blobs`), as of one moment."""
        with reading(self.engine) as connection:
            rows = {
                table.name: [dict(row) for row in connection.execute(select(table)).mappings()]
                for table in _HISTORY
            }
            return rows, queries.needed_blobs(connection)

    def restore(
        self,
        rows: Mapping[str, list[dict[str, Any]]],
        problem_of: Callable[[list[Version], set[str]], str | None],
    ) -> None:
        """The inverse of `dump`, into an empty ledger: all of it or, where it is no sound history, nothing.

        `problem_of` says what is wrong with its versions (ascending) and the blobs that they need.

        Raises:
            LedgerDamaged: with what is wrong with the history.
        """
        try:
            with writing(self.engine) as connection:
                for table in _HISTORY:
                    if found := rows.get(table.name):
                        connection.execute(insert(table), found)
                problem = _history_problem(connection) or problem_of(
                    queries.versions_after(connection, -1, None), queries.needed_blobs(connection)
                )
                if problem is not None:
                    raise LedgerDamaged(self.name, problem)
        except (IntegrityError, StatementError) as error:
            raise LedgerDamaged(self.name, f"rows do not fit: {' '.join(str(error.orig).split())}") from error
        except CompileError as error:  # of a column that there is not
            raise LedgerDamaged(self.name, f"rows do not fit: {error}") from error

    def audit(self, after: int = 0, limit: int | None = None) -> list[AuditEntry]:
        """Entries above `after`, ascending."""
        with reading(self.engine) as connection:
            return queries.audit_after(connection, after, limit)

    def actors(self, versions: Iterable[int]) -> dict[int, str]:
        """Who made each of these versions, as the audit has it."""
        with reading(self.engine) as connection:
            return queries.actors(connection, versions)

    def commit(self, change: Change, ensure_blobs: Callable[[], None] = nothing) -> Version:
        """Add a version, durably, in one transaction.

        `ensure_blobs` stores again what the version needs and is not there: from then on until the
        transaction ends nobody deletes a blob (`without_commits`).

        Raises:
            StaleParent: `change.parent` is not the newest version, the key was used meanwhile, or the
                target is older than a new snapshot; nothing was written.
            DiskFull, StorageFailed: see `service.storage`.
            LedgerUnavailable: whether it was written, a later read tells.
        """
        with writing(self.engine) as connection:
            self._keep_blobs(connection, ensure_blobs)
            parent = _newest_version(connection)
            if change.parent != parent.version or self._is_gone(connection, change.target):
                raise StaleParent(change.parent, parent.version)
            version = _successor(parent, change, _facts_of(connection, change))
            try:
                _insert(connection, version, change)
            except IntegrityError as error:
                raise StaleParent(change.parent, version.version) from error
            if self.shared:
                connection.execute(select(func.pg_notify(CHANNEL, str(version.version))))
            return version

    def _keep_blobs(self, connection: Connection, ensure: Callable[[], None]) -> None:
        if self.shared:
            connection.execute(select(func.pg_advisory_xact_lock_shared(_BLOBS)))
        ensure()

    def _is_gone(self, connection: Connection, target: int | None) -> bool:
        """Whether blobs of version `target` may have been deleted."""
        snapshot = None if target is None else queries.last_snapshot(connection)
        return snapshot is not None and target is not None and target < snapshot.version

    def _begin(self, version: Version, base: str) -> None:
        try:
            with writing(self.engine) as connection:
                _insert_version(connection, version)
        except IntegrityError:  # another process was as quick
            first = self.version(0)
            if first is None or first.base != base:
                raise WrongCheckpoint(self.name) from None

    def _prepare_schema(self) -> None:
        with reading(self.engine) as connection:
            if migrations.is_current(connection):
                return
        with writing(self.engine) as connection:
            if self.shared:
                connection.execute(select(func.pg_advisory_xact_lock(_SCHEMA)))
            migrations.upgrade(connection)

    def _verify(self) -> None:
        with reading(self.engine) as connection:
            problem = (
                integrity_problem(connection)
                or _history_problem(connection)
                or migrations.schema_problem(connection)
            )
        if problem is not None:
            raise LedgerDamaged(self.name, problem)


_HISTORY = (
    tables.versions,
    tables.facts,
    tables.changes,
    tables.idempotency,
    tables.audit,
    tables.snapshots,
)
"""In an order in which each refers to those before it."""


def _history_problem(connection: Connection) -> str | None:
    versions = queries.versions_after(connection, -1, None)
    return (
        history_problem(versions, queries.facts_by_id(connection))
        or audit_problem(queries.audit_after(connection, 0, None))
        or checksum_problem(connection)
    )


def record(connection: Connection, actor: str, action: str, target: str, detail: Mapping[str, Any]) -> None:
    """Add to the audit, within the transaction of what it tells of.

    Raises:
        sqlalchemy.exc.IntegrityError: another process added an entry at the same moment.
    """
    last = queries.last_audit(connection)
    seq, parent = (1, None) if last is None else (last.seq + 1, last.chain)
    entry = AuditEntry(seq, now(), actor, action, target, detail, "")
    entry = replace(entry, chain=audit_hash(parent, entry))
    connection.execute(insert(tables.audit), rows.audit_row(entry))


def _wait(connection: Any, seconds: float) -> None:
    for _ in connection.notifies(timeout=seconds, stop_after=1):
        pass


def _newest_version(connection: Connection) -> Version:
    newest = queries.newest(connection)
    if newest is None:
        raise LookupError("the ledger is empty: bind it first")
    return queries.versions_after(connection, newest - 1, 1)[0]


def _successor(parent: Version, change: Change, facts: Mapping[str, Fact]) -> Version:
    """The version that `change` makes of `parent`, with its chain hash."""
    version = Version(
        version=parent.version + 1,
        parent=parent.version,
        kind=change.kind,
        births=tuple(sorted(change.births)),
        deaths=tuple(sorted(change.deaths)),
        base=None,
        target=change.target,
        created_at=change.new_facts[0].created_at if change.new_facts else now(),
        chain="",
        fold=parent.fold if change.fold == SAME_FOLD else change.fold,
    )
    return replace(version, chain=chain_hash(parent.chain, version, facts))


def _facts_of(connection: Connection, change: Change) -> dict[str, Fact]:
    """The facts born in `change`, the new ones and those that return."""
    new = {fact.id: fact for fact in change.new_facts}
    return queries.facts_by_id(connection, set(change.births) - set(new)) | new


def _insert(connection: Connection, version: Version, change: Change) -> None:
    _insert_version(connection, version)
    if change.new_facts:
        connection.execute(insert(tables.facts), [rows.fact_row(fact) for fact in change.new_facts])
    born_and_dead = rows.change_rows(version)
    if born_and_dead:
        connection.execute(insert(tables.changes), born_and_dead)
    if change.key is not None:
        row = with_checksum(tables.idempotency, rows.key_row(change, version))
        connection.execute(insert(tables.idempotency), row)
    detail = {"births": version.births, "deaths": version.deaths, "target": version.target}
    told = {name: value for name, value in detail.items() if value not in (None, ())}
    record(connection, change.actor, str(change.kind), f"versions/{version.version}", told)


def _insert_version(connection: Connection, version: Version) -> None:
    connection.execute(insert(tables.versions), rows.version_row(version))
