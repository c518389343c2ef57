"""The /versions endpoints."""

from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Query

from service import problems
from service.api.cursors import decode_cursor, encode_cursor
from service.api.dependencies import Actor, HostDep, IfMatch, needs
from service.api.documentation import answers
from service.commands import UnknownVersion
from service.ledger import Position
from service.ledger.api_keys import Scope
from service.schemas.common import Page
from service.schemas.versions import Activated, VersionAnswer, VersionOut

router = APIRouter(
    prefix="/versions",
    tags=["versions"],
    dependencies=[needs(Scope.FACTS_READ, Scope.VERSIONS_WRITE)],
)

MAX_PAGE = 1000
Number = Annotated[int, Path(ge=0, lt=2**63)]


@router.get("", summary="List versions", responses=answers(problems.INVALID))
def list_versions(
    host: HostDep,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    cursor: Annotated[str | None, Query(max_length=200)] = None,
) -> Page[VersionOut]:
    """Oldest first."""
    newest = host.version
    after = -1 if cursor is None else decode_cursor(cursor).version
    found = host.ledger.versions(after, limit + 1)
    page = found[:limit]
    following = encode_cursor(Position(page[-1].version, "")) if len(found) > limit else None
    items = [VersionOut.of(version) for version in page]
    return Page(items=items, next_cursor=following, weights_version=newest)


@router.get("/{version}", summary="One version", responses=answers(problems.VERSION_NOT_FOUND))
def get_version(version: Number, host: HostDep) -> VersionAnswer:
    """What it changed, and how many facts it knows."""
    newest = host.version
    found = host.ledger.version(version)
    if found is None:
        raise UnknownVersion(version, newest)
    return VersionAnswer(
        **VersionOut.of(found).model_dump(),
        weights_version=newest,
        facts=len(host.ledger.live(version)),
    )


@router.post(
    "/{version}/activate",
    summary="Roll back, or forward again",
    status_code=201,
    responses=answers(
        problems.MALFORMED,
        problems.VERSION_NOT_FOUND,
        problems.STALE,
        problems.OVERLOADED,
        problems.CONTENDED,
        problems.READ_ONLY,
        problems.UNAVAILABLE,
        problems.DISK_FULL,
        problems.BLOB_DAMAGED,
    ),
)
async def activate_version(version: Number, host: HostDep, expected: IfMatch, actor: Actor) -> Activated:
    """Makes a new version that knows exactly the facts that `version` knows."""
    moved = await to_thread.run_sync(host.writer.activate, version, expected, actor)
    made = VersionOut.of(moved.version)
    return Activated(**made.model_dump(), weights_version=made.version)
