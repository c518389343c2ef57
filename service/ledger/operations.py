"""Writes that go on after their request was answered: what they are, and what became of them."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Engine, RowMapping, delete, insert, select, update

from service.ledger.chain import canonical
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
            connection.execute(insert(operations), row)

    def get(self, operation_id: str) -> Operation | None:
        """One operation."""
        with reading(self._engine) as connection:
            row = connection.execute(select(operations).where(operations.c.id == operation_id)).mappings()
            found = row.first()
        return None if found is None else _read(found)

    def page(self, after: str, limit: int, state: OperationState | None) -> list[Operation]:
        """Those after an id, oldest first, optionally of one state."""
        query = select(operations).where(operations.c.id > after).order_by(operations.c.id).limit(limit)
        if state is not None:
            query = query.where(operations.c.state == str(state))
        with reading(self._engine) as connection:
            return [_read(row) for row in connection.execute(query).mappings()]

    def move(
        self,
        operation_id: str,
        before: Collection[OperationState],
        state: OperationState,
        at: str,
        result: Mapping[str, Any] | None = None,
    ) -> bool:
        """Put it into `state` if it is in one of `before`; whether it was."""
        change = (
            update(operations)
            .where(operations.c.id == operation_id, operations.c.state.in_([str(s) for s in before]))
            .values(state=str(state), updated_at=at, result=None if result is None else canonical(result))
        )
        with writing(self._engine) as connection:
            return connection.execute(change).rowcount == 1

    def beat(self, owner: str, at: str) -> None:
        """`owner` still works on what it has not ended."""
        mine = operations.c.owner == owner, operations.c.state.in_([str(s) for s in OPEN])
        with writing(self._engine) as connection:
            connection.execute(update(operations).where(*mine).values(updated_at=at))

    def abandoned(self, owner: str, before: str) -> list[Operation]:
        """Open ones of other owners that were not heard of since `before`."""
        query = select(operations).where(
            operations.c.owner != owner,
            operations.c.state.in_([str(s) for s in OPEN]),
            operations.c.updated_at <= before,
        )
        with reading(self._engine) as connection:
            return [_read(row) for row in connection.execute(query).mappings()]

    def forget(self, before: str) -> None:
        """Drop those that ended before a moment."""
        ended = operations.c.state.not_in([str(s) for s in OPEN]), operations.c.updated_at < before
        with writing(self._engine) as connection:
            connection.execute(delete(operations).where(*ended))


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
