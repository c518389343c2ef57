"""The /facts endpoints."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Response

from service import problems
from service.api.cursors import decode_cursor, encode_cursor
from service.api.dependencies import HostDep, IfMatch, Key
from service.api.documentation import answers
from service.commands import AddFact, FactNotFound
from service.fact_requests import add_command
from service.ledger import START, FactState, Position
from service.schemas.common import Page
from service.schemas.facts import FactCreated, FactIn, FactOut, FactRehearsed, FactRetracted
from service.writer import Writer

router = APIRouter(prefix="/facts", tags=["facts"])

MAX_PAGE = 1000
FactId = Annotated[str, Path(description="as POST /facts answered it", max_length=64)]

_WRITING = (
    problems.MALFORMED,
    problems.STALE,
    problems.OVERLOADED,
    problems.READ_ONLY,
    problems.DISK_FULL,
)


@router.post(
    "",
    summary="Teach a fact",
    status_code=201,
    response_model=FactCreated | FactRehearsed,
    responses={
        200: {"model": FactRehearsed, "description": "A dry run: nothing was written"},
        **answers(
            *_WRITING,
            problems.KEY_CONFLICT,
            problems.KEY_IN_FLIGHT,
            problems.TOO_LARGE,
            problems.MEDIA,
            problems.INVALID,
            problems.UNREADABLE,
            problems.NOT_RECALLED,
        ),
    },
)
async def create_fact(
    asked: FactIn, host: HostDep, response: Response, expected: IfMatch, key: Key
) -> FactCreated | FactRehearsed:
    """The fact is consolidated into weights, checked by generation, made durable and published;
    only then comes the answer. A fact that is refused leaves no trace."""
    command = add_command(asked, host.runtime.num_layers, key, expected)
    if asked.dry_run:
        response.status_code = 200
        return await to_thread.run_sync(_rehearse, host.writer, command)
    added = await to_thread.run_sync(host.writer.add, command)
    if added.replayed:
        response.headers["Idempotency-Replayed"] = "true"
    fact = added.fact
    response.headers["Location"] = f"/facts/{fact.id}"
    return FactCreated(id=fact.id, weights_version=fact.version, report=dict(fact.report))


def _rehearse(writer: Writer, command: AddFact) -> FactRehearsed:
    rehearsed = writer.rehearse(command)
    return FactRehearsed(weights_version=rehearsed.weights_version, report=dict(rehearsed.report))


@router.get("", summary="List facts", responses=answers(problems.INVALID))
def list_facts(
    host: HostDep,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
    state: Annotated[FactState | None, Query(description="absent: all of them")] = None,
) -> Page[FactOut]:
    """Oldest first."""
    newest = host.version
    after = START if cursor is None else decode_cursor(cursor)
    # One more than asked tells whether there is another page.
    found = host.ledger.facts(after, limit + 1, state)
    page = found[:limit]
    following = None
    if len(found) > limit:
        following = encode_cursor(Position(page[-1].fact.version, page[-1].fact.id))
    items = [FactOut.of(stored, newest) for stored in page]
    return Page(items=items, next_cursor=following, weights_version=newest)


@router.get("/{fact_id}", summary="One fact", responses=answers(problems.FACT_NOT_FOUND))
def get_fact(fact_id: FactId, host: HostDep) -> FactOut:
    """With what was asked and what was measured when it was written."""
    newest = host.version
    stored = host.ledger.fact(fact_id)
    if stored is None:
        raise FactNotFound(fact_id)
    return FactOut.of(stored, newest)


@router.delete(
    "/{fact_id}",
    summary="Retract a fact",
    responses=answers(*_WRITING, problems.FACT_NOT_FOUND, problems.RETRACTED),
)
async def retract_fact(fact_id: FactId, host: HostDep, expected: IfMatch) -> FactRetracted:
    """A new version that does not know it; versions before it still do."""
    moved = await to_thread.run_sync(host.writer.retract, fact_id, expected)
    return FactRetracted(id=fact_id, weights_version=moved.version.version)
