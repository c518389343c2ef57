"""The /versions endpoints."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import StreamingResponse

from service import problems
from service.api.cursors import Cursor, NewestFirst, PageSize, decode_cursor, encode_cursor
from service.api.dependencies import Actor, HostDep, IfMatch, Key, PrefersAsync, needs, tell_replay
from service.api.documentation import ACCEPTED, READING, REPLAYED, answers
from service.api.operations import accepted
from service.commands import UnknownVersion
from service.exports.contents import contents, recorded
from service.exports.lora import adapter_files
from service.exports.merged import checkpoint_files
from service.exports.safetensors_stream import streamed
from service.exports.zipped import zipped
from service.fact_requests import fold_command
from service.host import CALIBRATION_FOLDER
from service.ledger import END, MAX_VERSION, START, Position
from service.ledger.api_keys import Scope
from service.middleware.version import HEADER
from service.schemas.common import Page
from service.schemas.operations import OperationOut
from service.schemas.versions import (
    Activated,
    FoldedOut,
    FoldIn,
    FoldRehearsed,
    VersionAnswer,
    VersionDiff,
    VersionOut,
)
from service.teaching import fold_later
from service.version_diff import difference

_SCOPES = needs(Scope.FACTS_READ, Scope.VERSIONS_WRITE)
router = APIRouter(prefix="/versions", tags=["versions"], dependencies=[_SCOPES])
folds = APIRouter(tags=["versions"], dependencies=[_SCOPES])

Number = Annotated[int, Path(ge=0, le=MAX_VERSION, description="a weights version")]


@router.get("", summary="List versions", responses=answers(problems.INVALID, *READING))
def list_versions(
    host: HostDep,
    limit: PageSize = 100,
    cursor: Cursor = None,
    newest_first: NewestFirst = False,
) -> Page[VersionOut]:
    """Oldest first, unless asked otherwise."""
    newest, begin = host.version, END if newest_first else START
    after = (begin if cursor is None else decode_cursor(cursor)).version
    pages = host.ledger.versions_before if newest_first else host.ledger.versions
    found = pages(after, limit + 1)
    page = found[:limit]
    following = encode_cursor(Position(page[-1].version, "")) if len(found) > limit else None
    items = [VersionOut.of(version) for version in page]
    return Page(items=items, next_cursor=following, weights_version=newest)


@router.get(
    "/{version}",
    summary="One version",
    responses=answers(problems.VERSION_NOT_FOUND, problems.VERSION_GONE, problems.BLOB_DAMAGED, *READING),
)
def get_version(version: Number, host: HostDep) -> VersionAnswer:
    """What it changed, and how many facts it knows."""
    newest = host.version
    found = host.ledger.version(version)
    if found is None:
        raise UnknownVersion(version, newest)
    if found.fold is not None:
        recorded(host.ledger, version)  # what is older than a snapshot may have lost its blobs
    return VersionAnswer(
        **VersionOut.of(found).model_dump(),
        weights_version=newest,
        facts=len(host.ledger.live(version)),
        folded=list(host.replica.load_fold(found.fold).facts),
    )


@router.get(
    "/{first}/diff/{second}",
    summary="What differs",
    responses=answers(problems.VERSION_NOT_FOUND, problems.VERSION_GONE, problems.BLOB_DAMAGED, *READING),
)
def diff_versions(first: Number, second: Number, host: HostDep) -> VersionDiff:
    """Between any two versions, in either direction."""
    return difference(host.ledger, host.replica, first, second)


class ExportFormat(StrEnum):
    """What a version is written as."""

    SAFETENSORS = "safetensors"
    PEFT = "peft"
    MERGED = "merged"


@router.get(
    "/{version}/export",
    summary="A version as a file",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "The file, as it is made",
            "content": {
                media: {"schema": {"type": "string", "format": "binary"}}
                for media in ("application/octet-stream", "application/zip")
            },
        },
        **answers(
            problems.VERSION_NOT_FOUND,
            problems.VERSION_GONE,
            problems.NOT_EXPORTABLE,
            problems.BLOB_DAMAGED,
            *READING,
        ),
    },
)
def export_version(
    version: Number,
    host: HostDep,
    format: Annotated[
        ExportFormat,
        Query(
            description="safetensors: every column, factor and fold, with its facts; peft: a LoRA adapter, "
            "where no fact is held as columns; merged: a checkpoint with folds in its weights and the bank "
            "beside them, which `npt serve` loads"
        ),
    ] = ExportFormat.SAFETENSORS,
) -> StreamingResponse:
    """What is damaged or cannot be expressed is refused before the first byte is sent."""
    held = contents(host.ledger, host.replica, host.blobs, version)
    if format is ExportFormat.SAFETENSORS:
        blocks = [*held.blocks(), *held.fold_blocks()]
        return _file(streamed(blocks, held.metadata()), f"npt-v{version}.safetensors", version)
    if format is ExportFormat.PEFT:
        files = adapter_files(held, host.settings.model)
        return _file(zipped(files), f"npt-v{version}-peft.zip", version)
    files = checkpoint_files(held, host.settings.model, host.settings.data / CALIBRATION_FOLDER)
    return _file(zipped(files), f"npt-v{version}-merged.zip", version)


def _file(chunks: Iterator[bytes], name: str, version: int) -> StreamingResponse:
    media = "application/zip" if name.endswith(".zip") else "application/octet-stream"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', HEADER: str(version)}
    return StreamingResponse(chunks, media_type=media, headers=headers)


@router.post(
    "/{version}/activate",
    summary="Roll back, or forward again",
    status_code=201,
    responses=answers(
        problems.MALFORMED,
        problems.VERSION_NOT_FOUND,
        problems.VERSION_GONE,
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
    moved = await to_thread.run_sync(host.writer.activate, version, expected, actor, limiter=host.writing)
    made = VersionOut.of(moved.version)
    return Activated(**made.model_dump(), weights_version=made.version)


@folds.post(
    "/versions:fold",
    summary="Fold facts into the base weights",
    status_code=201,
    response_model=None,
    responses={
        200: {"model": FoldRehearsed, "description": "A dry run: nothing was written"},
        201: {"model": FoldedOut, "description": "They are folded", "headers": REPLAYED},
        202: {**ACCEPTED, "description": "They will be folded"},
        **answers(
            problems.MALFORMED,
            problems.FACT_NOT_FOUND,
            problems.RETRACTED,
            problems.KEY_CONFLICT,
            problems.KEY_IN_FLIGHT,
            problems.STALE,
            problems.TOO_LARGE,
            problems.TOO_SLOW,
            problems.MEDIA,
            problems.INVALID,
            problems.FOLD_REFUSED,
            problems.BLOB_DAMAGED,
            problems.OVERLOADED,
            problems.CONTENDED,
            problems.READ_ONLY,
            problems.UNAVAILABLE,
            problems.DISK_FULL,
        ),
    },
)
async def fold_versions(
    asked: FoldIn,
    host: HostDep,
    response: Response,
    expected: IfMatch,
    key: Key,
    actor: Actor,
    later: PrefersAsync,
) -> FoldedOut | FoldRehearsed | OperationOut:
    """Makes a new version that knows the same, some of it in the base weights themselves, where it takes
    neither memory nor time. Refused where that would change other answers too much. A folded fact can be
    retracted like any other, and a rollback to a version before the fold gives its bits again."""
    command = fold_command(asked, actor, key, expected)
    if later:
        operation = await to_thread.run_sync(fold_later, host.operations, host.writer, command, asked.dry_run)
        return accepted(operation, response, host.version)
    folded = await to_thread.run_sync(host.writer.fold, command, asked.dry_run, limiter=host.writing)
    if asked.dry_run:
        response.status_code = 200
        return FoldRehearsed.of(folded)
    tell_replay(folded.replayed, response)
    return FoldedOut.made(folded)
