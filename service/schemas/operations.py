"""The /operations resource."""

from typing import Any

from pydantic import Field

from npt_core.consolidation import Step
from service.ledger.operations import OPEN, Operation, OperationState
from service.schemas.common import Out
from service.schemas.problem import Problem


class OperationOut(Out):
    """A write that was answered before it was done."""

    id: str
    action: str = Field(description="what was asked for, such as facts.create")
    state: OperationState
    step: Step | None = Field(
        None,
        description="running: the step that a fact is at, as far as the replica that was asked knows, which "
        "it does of its own operations; a batch passes through all but the first and last once a fact, and "
        "an attempt that fails begins again",
    )
    actor: str
    created_at: str
    updated_at: str = Field(description="when it was last heard of")
    result: dict[str, Any] | None = Field(None, description="succeeded: what would have been answered")
    problem: Problem | None = Field(None, description="failed: the problem that would have been answered")
    weights_version: int = Field(description="the newest version when this was answered")

    @classmethod
    def of(cls, operation: Operation, weights_version: int, step: Step | None = None) -> "OperationOut":
        """From what the ledger keeps, and the step that it is at, if that is known."""
        failed = operation.state is OperationState.FAILED
        result = None if operation.result is None else dict(operation.result)
        return cls(
            id=operation.id,
            action=operation.action,
            state=operation.state,
            step=step if operation.state in OPEN else None,
            actor=operation.actor,
            created_at=operation.created_at,
            updated_at=operation.updated_at,
            result=None if failed else result,
            problem=Problem(**result) if failed and result else None,
            weights_version=weights_version,
        )
