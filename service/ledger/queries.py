"""The reading half of the ledger, as SQL."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Select, func, select, tuple_

from service.ledger import rows
from service.ledger.checksums import sound
from service.ledger.records import AuditEntry, Fact, FactState, Snapshot, StoredFact, Version, VersionKind
from service.ledger.tables import audit, changes, facts, snapshots, versions

_lives = (
    select(
        changes.c.fact_id,
        func.sum(changes.c.delta).label("alive"),
        func.max(changes.c.version).label("last"),
    )
    .group_by(changes.c.fact_id)
    .subquery()
)
_stored = select(facts, _lives.c.alive, _lives.c.last).join(_lives, _lives.c.fact_id == facts.c.id)


def newest(connection: Connection) -> int | None:
    """The newest version, `None` in an empty ledger."""
    found: int | None = connection.scalar(select(func.max(versions.c.version)))
    return found


def versions_after(connection: Connection, after: int, limit: int | None) -> list[Version]:
    """Versions above `after`, ascending."""
    query = select(versions).where(versions.c.version > after).order_by(versions.c.version)
    return _read_versions(connection, query.limit(limit))


def versions_before(connection: Connection, before: int, limit: int | None) -> list[Version]:
    """Versions below `before`, descending."""
    query = select(versions).where(versions.c.version < before).order_by(versions.c.version.desc())
    return _read_versions(connection, query.limit(limit))


def _read_versions(connection: Connection, query: Select[Any]) -> list[Version]:
    found = connection.execute(query).mappings().all()
    if not found:
        return []
    ends = found[0]["version"], found[-1]["version"]
    numbers = changes.c.version.between(min(ends), max(ends))
    by_version = defaultdict(list)
    for change in connection.execute(select(changes).where(numbers)).mappings():
        by_version[change["version"]].append(change)
    return [rows.read_version(row, by_version[row["version"]]) for row in found]


def live(connection: Connection, version: int) -> set[str]:
    """Ids of the facts that `version` knows."""
    query = (
        select(changes.c.fact_id)
        .where(changes.c.version <= version)
        .group_by(changes.c.fact_id)
        .having(func.sum(changes.c.delta) == 1)
    )
    return set(connection.scalars(query))


def stored_fact(connection: Connection, fact_id: str) -> StoredFact | None:
    """One fact."""
    found = _read_facts(connection, _stored.where(facts.c.id == fact_id))
    return found[0] if found else None


def expiring(connection: Connection, until: str | None = None) -> list[tuple[str, str]]:
    """When living facts are to be retracted by themselves, and their ids, the next one first; optionally
    only those until a moment.
    """
    # Asked at every version: only what expires is looked at, not the lives of all facts.
    alive = select(func.sum(changes.c.delta)).where(changes.c.fact_id == facts.c.id).scalar_subquery()
    query = select(facts.c.expires_at, facts.c.id).where(facts.c.expires_at.is_not(None), alive == 1)
    if until is not None:
        query = query.where(facts.c.expires_at <= until)
    return [(at, id_) for at, id_ in connection.execute(query.order_by(facts.c.expires_at, facts.c.id))]


def facts_by_id(connection: Connection, ids: Iterable[str] | None = None) -> dict[str, Fact]:
    """Those of `ids` that there are; all facts without."""
    query = select(facts)
    if ids is None:
        found = connection.execute(query).mappings().all()
    else:
        # SQLite takes so many parameters in one statement.
        parts = batched(sorted(ids), 30_000)
        found = [
            row for part in parts for row in connection.execute(query.where(facts.c.id.in_(part))).mappings()
        ]
    return {row["id"]: rows.read_fact(row) for row in found}


def audit_after(connection: Connection, after: int, limit: int | None) -> list[AuditEntry]:
    """Entries above `after`, ascending."""
    query = select(audit).where(audit.c.seq > after).order_by(audit.c.seq).limit(limit)
    return [rows.read_audit(row) for row in connection.execute(query).mappings()]


def actors(connection: Connection, numbers: Iterable[int]) -> dict[int, str]:
    """Who made each of these versions; nobody made the first one."""
    targets = {f"versions/{number}": number for number in numbers}
    query = select(audit.c.target, audit.c.actor)
    query = query.where(audit.c.action.in_([str(kind) for kind in VersionKind]))
    found = [
        row
        for part in batched(sorted(targets), 30_000)
        for row in connection.execute(query.where(audit.c.target.in_(part)))
    ]
    return {targets[target]: actor for target, actor in found}


def last_audit(connection: Connection) -> AuditEntry | None:
    """The newest entry."""
    row = connection.execute(select(audit).order_by(audit.c.seq.desc()).limit(1)).mappings().first()
    return None if row is None else rows.read_audit(row)


def last_snapshot(connection: Connection) -> Snapshot | None:
    """The newest snapshot."""
    query = select(snapshots).order_by(snapshots.c.version.desc()).limit(1)
    row = connection.execute(query).mappings().first()
    if row is None:
        return None
    sound(connection, snapshots, row)
    return Snapshot(row["version"], row["blob"], row["chain"], row["created_at"])


def needed_blobs(connection: Connection) -> set[str]:
    """Blobs that are needed by the newest snapshot and the versions after it."""
    snapshot = last_snapshot(connection)
    if snapshot is None:
        return _blobs_since(connection, 0)
    return _blobs_since(connection, snapshot.version) | {snapshot.blob}


def _blobs_since(connection: Connection, version: int) -> set[str]:
    """Blobs of facts that `version` or a later one knows, and of folds in force at them."""
    alive = (
        select(changes.c.fact_id)
        .where(changes.c.version <= version)
        .group_by(changes.c.fact_id)
        .having(func.sum(changes.c.delta) == 1)
    )
    later = select(changes.c.fact_id).where(changes.c.version > version)
    known = select(facts.c.blob).where(facts.c.id.in_(alive) | facts.c.id.in_(later))
    folds = select(versions.c.fold).where(versions.c.version >= version, versions.c.fold.is_not(None))
    return {*connection.scalars(known), *connection.scalars(folds)}


def batched(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """`items` in parts of at most `size`."""
    return (items[start : start + size] for start in range(0, len(items), size))


def stored_facts(
    connection: Connection,
    after: tuple[int, str],
    limit: int | None,
    state: FactState | None,
    newest_first: bool,
) -> list[StoredFact]:
    """Facts after the position `(version, id)` in their order, optionally of one state."""
    position = tuple_(facts.c.version, facts.c.id)
    query = _stored.where(position < after if newest_first else position > after)
    if state is not None:
        query = query.where(_lives.c.alive == (1 if state is FactState.PUBLISHED else 0))
    order = facts.c.version, facts.c.id
    ordered = query.order_by(*(column.desc() for column in order) if newest_first else order)
    return _read_facts(connection, ordered.limit(limit))


def _read_facts(connection: Connection, query: Select[Any]) -> list[StoredFact]:
    return [rows.read_stored_fact(row) for row in connection.execute(query).mappings()]
