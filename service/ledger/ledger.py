"""The ledger: which facts each version knows, append-only and hash-chained."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import DatabaseError, IntegrityError

from service.ledger import queries, rows, tables
from service.ledger.chain import chain_hash
from service.ledger.database import connect, integrity_problem, writing
from service.ledger.errors import LedgerDamaged, LedgerTooNew, StaleParent, WrongCheckpoint
from service.ledger.records import (
    Change,
    Fact,
    FactState,
    IdempotencyKey,
    StoredFact,
    Version,
    VersionKind,
)
from service.ledger.verify import history_problem


class Position(NamedTuple):
    """Where a page of facts ended."""

    version: int
    id: str


START = Position(-1, "")


def now() -> str:
    """This moment, UTC, in RFC 3339."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Ledger:
    """Facts and versions in one SQLite file. Reading is thread-safe; writers must take turns.

    Raises:
        LedgerDamaged: the file or its history is not as it was written.
        LedgerTooNew: a later release wrote it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._engine = connect(path)
            self._prepare_schema()
            self._verify()
        except (DatabaseError, ValueError) as error:
            reason = error.orig if isinstance(error, DatabaseError) else error
            raise LedgerDamaged(path, str(reason)) from error

    def close(self) -> None:
        """Close the file."""
        self._engine.dispose()

    def bind(self, base: str) -> None:
        """Tie the ledger to the checkpoint with fingerprint `base`; an empty one begins here.

        Raises:
            WrongCheckpoint: it belongs to another.
        """
        first = self.version(0)
        if first is None:
            blank = Version(0, None, VersionKind.BASE, (), (), base, None, now(), "")
            with writing(self._engine) as connection:
                _insert_version(connection, replace(blank, chain=chain_hash(None, blank, {})))
        elif first.base != base:
            raise WrongCheckpoint(self._path)

    @property
    def newest(self) -> int:
        """The newest version; the ledger must be bound."""
        with self._engine.connect() as connection:
            return queries.newest(connection) or 0

    def version(self, number: int) -> Version | None:
        """One version."""
        found = self.versions(number - 1, 1)
        return found[0] if found and found[0].version == number else None

    def versions(self, after: int = -1, limit: int | None = None) -> list[Version]:
        """Versions above `after`, ascending."""
        with self._engine.connect() as connection:
            return queries.versions_after(connection, after, limit)

    def live(self, version: int) -> set[str]:
        """Ids of the facts that `version` knows."""
        with self._engine.connect() as connection:
            return queries.live(connection, version)

    def fact(self, fact_id: str) -> StoredFact | None:
        """One fact."""
        with self._engine.connect() as connection:
            return queries.stored_fact(connection, fact_id)

    def facts(
        self, after: Position = START, limit: int | None = None, state: FactState | None = None
    ) -> list[StoredFact]:
        """Facts after a position, oldest first, optionally only those in one state."""
        with self._engine.connect() as connection:
            return queries.stored_facts(connection, after, limit, state)

    def find_key(self, key: str) -> tuple[IdempotencyKey, StoredFact] | None:
        """An idempotency key that was used, and the fact it wrote."""
        query = select(tables.idempotency).where(tables.idempotency.c.key == key)
        with self._engine.connect() as connection:
            row = connection.execute(query).mappings().first()
            fact = queries.stored_fact(connection, row["fact_id"]) if row else None
        if row is None or fact is None:
            return None
        return IdempotencyKey(row["key"], row["digest"]), fact

    def commit(self, change: Change) -> Version:
        """Add a version, durably, in one transaction.

        Raises:
            StaleParent: `change.parent` is not the newest version; nothing was written.
            DiskFull, StorageFailed: see `service.storage`.
        """
        with writing(self._engine) as connection:
            parent = _newest_version(connection)
            if change.parent != parent.version:
                raise StaleParent(change.parent, parent.version)
            version = _successor(parent, change, _facts_of(connection, change))
            try:
                _insert(connection, version, change)
            except IntegrityError as error:
                raise StaleParent(change.parent, version.version) from error
            return version

    def _prepare_schema(self) -> None:
        with writing(self._engine) as connection:
            found: int = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            if found > tables.SCHEMA_VERSION:
                raise LedgerTooNew(self._path, found, tables.SCHEMA_VERSION)
            if found == 0:
                tables.metadata.create_all(connection)
                connection.exec_driver_sql(f"PRAGMA user_version={tables.SCHEMA_VERSION}")

    def _verify(self) -> None:
        with self._engine.connect() as connection:
            problem = integrity_problem(connection) or history_problem(
                queries.versions_after(connection, -1, None), _all_facts(connection)
            )
        if problem is not None:
            raise LedgerDamaged(self._path, problem)


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
        created_at=now() if change.new_fact is None else change.new_fact.created_at,
        chain="",
    )
    return replace(version, chain=chain_hash(parent.chain, version, facts))


def _facts_of(connection: Connection, change: Change) -> dict[str, Fact]:
    """The facts born in `change`, the new one and those that return."""
    facts = {} if change.new_fact is None else {change.new_fact.id: change.new_fact}
    for fact_id in set(change.births) - set(facts):
        stored = queries.stored_fact(connection, fact_id)
        if stored is not None:
            facts[fact_id] = stored.fact
    return facts


def _insert(connection: Connection, version: Version, change: Change) -> None:
    _insert_version(connection, version)
    fact, key = change.new_fact, change.key
    if fact is not None:
        connection.execute(insert(tables.facts), rows.fact_row(fact))
    if fact is not None and key is not None:
        row = {"key": key.key, "digest": key.digest, "fact_id": fact.id, "created_at": now()}
        connection.execute(insert(tables.idempotency), row)
    born_and_dead = rows.change_rows(version)
    if born_and_dead:
        connection.execute(insert(tables.changes), born_and_dead)


def _insert_version(connection: Connection, version: Version) -> None:
    connection.execute(insert(tables.versions), rows.version_row(version))


def _all_facts(connection: Connection) -> dict[str, Fact]:
    found = connection.execute(select(tables.facts)).mappings()
    return {row["id"]: rows.read_fact(row) for row in found}
