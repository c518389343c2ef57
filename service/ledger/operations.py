"""Writes that go on after their request was answered: what they are, and what became of them."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, Select, bindparam, delete, insert, select, update

from service.ledger.chain import canonical
from service.ledger.checksums import row_problem, sound, with_checksum
from service.ledger.database import reading, writing
from service.ledger.tables import operations


class OperationState(StrEnum):
    """How far an operation is; the last three are for good."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN = (OperationState.PENDING, OperationState.RUNNING)
AT_ONCE = 1000
"""So many are forgotten in one transaction."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One write. `result` is the answer once it succeeded, the problem once it failed; `owner` the process
    that works on it, which says at `updated_at` that it still does. Ids sort as they were made.
    """

    id: str
    actor: str
    action: str
    state: OperationState
    request: Mapping[str, Any]
    result: Mapping[str, Any] | None
    owner: str
    created_at: str
    updated_at: str


class OperationLog:
    """The operations of one database. Thread-safe; raises as `Ledger` does."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, operation: Operation) -> None:
        """A new one."""
        row = {
            "id": operation.id,
            "actor": operation.actor,
            "action": operation.action,
            "state": str(operation.state),
            "request": canonical(operation.request),
            "result": None if operation.result is None else canonical(operation.result),
            "owner": operation.owner,
            "created_at": operation.created_at,
            "updated_at": operation.updated_at,
        }
        with writing(self._engine) as connection:
            connection.execute(insert(operations), with_checksum(operations, row))

    def get(self, operation_id: str) -> Operation | None:
        """One operation."""
        with reading(self._engine) as connection:
            found = _all(connection, select(operations).where(operations.c.id == operation_id))
        return found[0] if found else None

    def page(self, after: str, limit: int, state: OperationState | None) -> list[Operation]:
        """Those after an id, oldest first, optionally of one state."""
        query = select(operations).where(operations.c.id > after).order_by(operations.c.id).limit(limit)
        if state is not None:
            query = query.where(operations.c.state == str(state))
        with reading(self._engine) as connection:
            return _all(connection, query)

    def move(
        self,
        operation_id: str,
        before: Collection[OperationState],
        state: OperationState,
        at: str,
        result: Mapping[str, Any] | None = None,
    ) -> bool:
        """Put it into `state` if it is in one of `before`; whether it was."""
        this = operations.c.id == operation_id
        new = {
            "state": str(state),
            "updated_at": at,
            "result": None if result is None else canonical(result),
        }
        with writing(self._engine) as connection:
            # Locked until the end: nobody else changes what the checksum is made of.
            query = select(operations).where(this).with_for_update()
            found = connection.execute(query).mappings().first()
            if found is None or sound(connection, operations, found)["state"] not in before:
                return False
            row = with_checksum(operations, {**found, **new})
            connection.execute(update(operations).where(this).values(row))
            return True

    def beat(self, owner: str, at: str) -> None:
        """`owner` still works on what it has not ended. A damaged row stays as it is, for its readers to
        find."""
        mine = operations.c.owner == owner, operations.c.state.in_([str(s) for s in OPEN])
        change = update(operations).where(operations.c.id == bindparam("this"))
        change = change.values(updated_at=bindparam("at"), checksum=bindparam("sum"))
        with writing(self._engine) as connection:
            found = connection.execute(select(operations).where(*mine).with_for_update()).mappings()
            rows = [
                with_checksum(operations, {**row, "updated_at": at})
                for row in found
                if row_problem(operations, row) is None
            ]
            if rows:
                sums = [{"this": row["id"], "at": at, "sum": row["checksum"]} for row in rows]
                connection.execute(change, sums)

    def abandoned(self, owner: str, before: str) -> list[Operation]:
        """Open ones of other owners that were not heard of since `before`."""
        query = select(operations).where(
            operations.c.owner != owner,
            operations.c.state.in_([str(s) for s in OPEN]),
            operations.c.updated_at <= before,
        )
        with reading(self._engine) as connection:
            return _all(connection, query)

    def forget(self, before: str) -> None:
        """Drop those that ended before a moment, some at a time. A damaged row may not have."""
        ended = operations.c.state.not_in([str(s) for s in OPEN]), operations.c.updated_at < before
        with writing(self._engine) as connection:
            found = connection.execute(select(operations).where(*ended).limit(AT_ONCE)).mappings()
            ids = [row["id"] for row in found if row_problem(operations, row) is None]
            if ids:  # what has ended does not change any more
                connection.execute(delete(operations).where(operations.c.id.in_(ids)))


def _all(connection: Connection, query: Select[Any]) -> list[Operation]:
    found = connection.execute(query).mappings()
    return [_read(sound(connection, operations, row)) for row in found]


def _read(row: RowMapping) -> Operation:
    return Operation(
        row["id"],
        row["actor"],
        row["action"],
        OperationState(row["state"]),
        json.loads(row["request"]),
        None if row["result"] is None else json.loads(row["result"]),
        row["owner"],
        row["created_at"],
        row["updated_at"],
    )
