"""The /facts endpoints."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Response

from service import problems
from service.api.cursors import ID, Cursor, NewestFirst, PageSize, decode_cursor, encode_cursor
from service.api.dependencies import Actor, HostDep, IfMatch, Key, PrefersAsync, needs, tell_replay
from service.api.documentation import ACCEPTED, LINKS, READING, REPLAYED, WRITTEN, answers
from service.api.operations import accepted
from service.commands import AddFacts, FactNotFound
from service.fact_requests import add_command
from service.fact_search import search
from service.host import Host
from service.ledger import END, MAX_VERSION, START, FactState, Position
from service.ledger.api_keys import Scope
from service.schemas.common import Page
from service.schemas.facts import (
    MAX_QUESTION,
    BatchCreated,
    BatchIn,
    BatchRehearsed,
    FactCreated,
    FactIn,
    FactOut,
    FactRehearsed,
    FactRetracted,
    FactsFound,
)
from service.schemas.operations import OperationOut
from service.teaching import BATCH, CREATE, teach_later

_SCOPES = [needs(Scope.FACTS_READ, Scope.FACTS_WRITE)]
router = APIRouter(prefix="/facts", tags=["facts"], dependencies=_SCOPES)
batches = APIRouter(tags=["facts"], dependencies=_SCOPES)

MAX_FOUND = 100
FactId = Annotated[str, Path(description="as POST /facts answered it", max_length=64, pattern=ID)]

_WRITING = (
    problems.MALFORMED,
    problems.STALE,
    problems.OVERLOADED,
    problems.CONTENDED,
    problems.READ_ONLY,
    problems.UNAVAILABLE,
    problems.DISK_FULL,
)
_TEACHING = (
    *_WRITING,
    problems.CONTRADICTION,
    problems.KEY_CONFLICT,
    problems.KEY_IN_FLIGHT,
    problems.TOO_LARGE,
    problems.TOO_SLOW,
    problems.MEDIA,
    problems.INVALID,
    problems.UNREADABLE,
    problems.NOT_RECALLED,
)


@router.post(
    "",
    summary="Teach a fact",
    status_code=201,
    response_model=None,
    responses={
        200: {"model": FactRehearsed, "description": "A dry run: nothing was written"},
        201: {"model": FactCreated, "description": "It is known", "headers": WRITTEN, "links": LINKS},
        202: {**ACCEPTED, "description": "It will be written"},
        **answers(*_TEACHING),
    },
)
async def create_fact(
    asked: FactIn,
    host: HostDep,
    response: Response,
    expected: IfMatch,
    key: Key,
    actor: Actor,
    later: PrefersAsync,
) -> FactCreated | FactRehearsed | OperationOut:
    """The fact is consolidated into weights, checked by generation, made durable and published;
    only then comes the answer, unless the client would rather not wait. A fact that is refused leaves no
    trace."""
    command = add_command([asked], host.runtime.num_layers, actor, key, expected)
    if later:
        return await _later(host, response, command, CREATE, asked.dry_run)
    if asked.dry_run:
        response.status_code = 200
        return FactRehearsed.of(await to_thread.run_sync(host.writer.rehearse, command, limiter=host.writing))
    added = await to_thread.run_sync(host.writer.add, command, limiter=host.writing)
    response.headers["Location"] = f"/facts/{added.facts[0].id}"
    tell_replay(added.replayed, response)
    return FactCreated.of(added)


@batches.post(
    "/facts:batch",
    summary="Teach facts in one version",
    status_code=201,
    response_model=None,
    responses={
        200: {"model": BatchRehearsed, "description": "A dry run: nothing was written"},
        201: {"model": BatchCreated, "description": "All of them are known", "headers": REPLAYED},
        202: {**ACCEPTED, "description": "They will be written"},
        **answers(*_TEACHING, problems.SELF_CONTRADICTION),
    },
)
async def create_facts(
    asked: BatchIn,
    host: HostDep,
    response: Response,
    expected: IfMatch,
    key: Key,
    actor: Actor,
    later: PrefersAsync,
) -> BatchCreated | BatchRehearsed | OperationOut:
    """All or nothing: one that is refused refuses the batch, and the problem says which and why."""
    command = add_command(asked.facts, host.runtime.num_layers, actor, key, expected, batch=True)
    if later:
        return await _later(host, response, command, BATCH, asked.dry_run)
    if asked.dry_run:
        response.status_code = 200
        return BatchRehearsed.of(
            await to_thread.run_sync(host.writer.rehearse, command, limiter=host.writing)
        )
    added = await to_thread.run_sync(host.writer.add, command, limiter=host.writing)
    tell_replay(added.replayed, response)
    return BatchCreated.of(added)


async def _later(
    host: Host, response: Response, command: AddFacts, action: str, dry_run: bool
) -> OperationOut:
    operation = await to_thread.run_sync(teach_later, host.operations, host.writer, command, action, dry_run)
    return accepted(operation, response, host.version)


@batches.get(
    "/facts:search",
    summary="Which stored fact would answer",
    responses=answers(
        problems.VERSION_NOT_FOUND,
        problems.VERSION_GONE,
        problems.PROMPT_TOO_LONG,
        *READING,
    ),
)
async def search_facts(
    host: HostDep,
    q: Annotated[str, Query(min_length=1, max_length=MAX_QUESTION, description="a prompt")],
    limit: Annotated[int, Query(ge=1, le=MAX_FOUND, description="the nearest so many")] = 10,
    weights_version: Annotated[
        int | None, Query(ge=0, le=MAX_VERSION, description="whose facts; absent: the newest")
    ] = None,
) -> FactsFound:
    """The model reads the prompt, and its last token's key is compared with those of all facts that the
    version knows: what decides whether a fact answers, as numbers."""
    return await to_thread.run_sync(search, host, q, limit, weights_version, limiter=host.asking)


@router.get("", summary="List facts", responses=answers(problems.INVALID, *READING))
def list_facts(
    host: HostDep,
    limit: PageSize = 100,
    cursor: Cursor = None,
    state: Annotated[FactState | None, Query(description="absent: all of them")] = None,
    newest_first: NewestFirst = False,
) -> Page[FactOut]:
    """Oldest first, unless asked otherwise."""
    newest, begin = host.version, END if newest_first else START
    after = begin if cursor is None else decode_cursor(cursor)
    # One more than asked tells whether there is another page.
    found = host.ledger.facts(after, limit + 1, state, newest_first)
    page = found[:limit]
    following = None
    if len(found) > limit:
        following = encode_cursor(Position(page[-1].fact.version, page[-1].fact.id))
    actors = host.ledger.actors({stored.fact.version for stored in page})
    items = [FactOut.of(stored, newest, host.replica.folded, actors[stored.fact.version]) for stored in page]
    return Page(items=items, next_cursor=following, weights_version=newest)


@router.get("/{fact_id}", summary="One fact", responses=answers(problems.FACT_NOT_FOUND, *READING))
def get_fact(fact_id: FactId, host: HostDep) -> FactOut:
    """With what was asked and what was measured when it was written."""
    newest = host.version
    stored = host.ledger.fact(fact_id)
    if stored is None:
        raise FactNotFound(fact_id)
    actors = host.ledger.actors([stored.fact.version])
    return FactOut.of(stored, newest, host.replica.folded, actors[stored.fact.version])


@router.delete(
    "/{fact_id}",
    summary="Retract a fact",
    responses=answers(*_WRITING, problems.FACT_NOT_FOUND, problems.RETRACTED),
)
async def retract_fact(fact_id: FactId, host: HostDep, expected: IfMatch, actor: Actor) -> FactRetracted:
    """A new version that does not know it; versions before it still do."""
    moved = await to_thread.run_sync(host.writer.retract, fact_id, expected, actor, limiter=host.writing)
    return FactRetracted(id=fact_id, weights_version=moved.version.version)
