"""The /operations resource."""

from typing import Any

from pydantic import Field

from service.ledger.operations import Operation, OperationState
from service.schemas.common import Out
from service.schemas.problem import Problem


class OperationOut(Out):
    """A write that was answered before it was done."""

    id: str
    action: str = Field(description="what was asked for, such as facts.create")
    state: OperationState
    actor: str
    created_at: str
    updated_at: str = Field(description="when it was last heard of")
    result: dict[str, Any] | None = Field(None, description="succeeded: what would have been answered")
    problem: Problem | None = Field(None, description="failed: the problem that would have been answered")
    weights_version: int = Field(description="the newest version when this was answered")

    @classmethod
    def of(cls, operation: Operation, weights_version: int) -> "OperationOut":
        """From what the ledger keeps."""
        failed = operation.state is OperationState.FAILED
        result = None if operation.result is None else dict(operation.result)
        return cls(
            id=operation.id,
            action=operation.action,
            state=operation.state,
            actor=operation.actor,
            created_at=operation.created_at,
            updated_at=operation.updated_at,
            result=None if failed else result,
            problem=Problem(**result) if failed and result else None,
            weights_version=weights_version,
        )
