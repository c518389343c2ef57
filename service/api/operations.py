"""The /operations endpoints."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from service import problems
from service.api.cursors import ID, Cursor, PageSize, decode_cursor, encode_cursor
from service.api.dependencies import HostDep, needs
from service.api.documentation import READING, answers
from service.ledger import Position
from service.ledger.api_keys import Scope
from service.ledger.operations import OPEN, Operation, OperationState
from service.schemas.common import Page
from service.schemas.operations import OperationOut

router = APIRouter(
    prefix="/operations",
    tags=["operations"],
    dependencies=[needs(Scope.FACTS_READ, Scope.FACTS_WRITE)],
)

POLL_S = 1
"""Seconds until it makes sense to ask again: a write takes about as long."""
OperationId = Annotated[str, Path(description="as the answer 202 named it", max_length=64, pattern=ID)]


def accepted(operation: Operation, response: Response, weights_version: int) -> OperationOut:
    """The answer to a write that goes on without its client."""
    response.status_code = 202
    response.headers["Location"] = f"/operations/{operation.id}"
    response.headers["Preference-Applied"] = "respond-async"
    response.headers["Retry-After"] = str(POLL_S)
    return OperationOut.of(operation, weights_version)


@router.get("", summary="List operations", responses=answers(problems.INVALID, *READING))
def list_operations(
    host: HostDep,
    limit: PageSize = 100,
    cursor: Cursor = None,
    state: Annotated[OperationState | None, Query(description="absent: all of them")] = None,
) -> Page[OperationOut]:
    """Oldest first; what ended a week ago is forgotten."""
    newest = host.version
    found = host.operations.page("" if cursor is None else decode_cursor(cursor).id, limit + 1, state)
    page = found[:limit]
    following = encode_cursor(Position(0, page[-1].id)) if len(found) > limit else None
    items = [OperationOut.of(operation, newest, host.operations.step(operation.id)) for operation in page]
    return Page(items=items, next_cursor=following, weights_version=newest)


@router.get(
    "/{operation_id}", summary="One operation", responses=answers(problems.OPERATION_NOT_FOUND, *READING)
)
def get_operation(operation_id: OperationId, host: HostDep, response: Response) -> OperationOut:
    """How far it is; once it ended, its result or its problem."""
    operation = host.operations.get(operation_id)
    if operation.state in OPEN:
        response.headers["Retry-After"] = str(POLL_S)
    return OperationOut.of(operation, host.version, host.operations.step(operation_id))


@router.delete(
    "/{operation_id}",
    summary="Cancel an operation",
    responses={
        202: {"model": OperationOut, "description": "It runs, and ends between two of its steps"},
        **answers(
            problems.OPERATION_NOT_FOUND,
            problems.OPERATION_ENDED,
            problems.OPERATION_ELSEWHERE,
            problems.DISK_FULL,
            *READING,
        ),
    },
)
def cancel_operation(operation_id: OperationId, host: HostDep, response: Response) -> OperationOut:
    """One that waits never begins. One that runs ends before its version is stored, or not at all."""
    operation = host.operations.cancel(operation_id)
    if operation.state in OPEN:
        response.status_code = 202
    return OperationOut.of(operation, host.version, host.operations.step(operation_id))
