"""Errors to problem details (RFC 9457): one table, in which types and statuses are stable."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import RouteContext, iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.routing import Match

from npt_core import consolidation, engine
from service import access, blobs, commands, ledger, storage
from service.request_errors import (
    FailedGeneration,
    MalformedHeader,
    NotReady,
    UnknownModel,
    VersionNotReached,
)
from service.schemas import openai
from service.schemas.problem import FieldProblem, Problem

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
OPENAI = "/v1/"
"""Below it errors have OpenAI's shape."""
RETRY_AFTER_S = 1
"""Queues here drain in seconds."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A problem type; `retry` adds a Retry-After header."""

    type: str
    status: HTTPStatus
    title: str
    retry: bool = False


MALFORMED = Kind("npt:malformed-request", HTTPStatus.BAD_REQUEST, "The request cannot be read")
INVALID = Kind("npt:invalid-request", HTTPStatus.UNPROCESSABLE_ENTITY, "The request does not fit the schema")
MEDIA = Kind("npt:unsupported-media-type", HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body must be JSON")
NOT_FOUND = Kind("npt:not-found", HTTPStatus.NOT_FOUND, "There is nothing at this address")
NOT_ALLOWED = Kind("npt:method-not-allowed", HTTPStatus.METHOD_NOT_ALLOWED, "This method is not offered here")
FOREIGN_HOST = Kind(
    "npt:foreign-host", HTTPStatus.MISDIRECTED_REQUEST, "This server answers only to local names"
)
TOO_SLOW = Kind("npt:request-timeout", HTTPStatus.REQUEST_TIMEOUT, "The request took too long to arrive")
TOO_LARGE = Kind("npt:body-too-large", HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The request body is too large")
INTERNAL = Kind("npt:internal-error", HTTPStatus.INTERNAL_SERVER_ERROR, "The server failed; the log says why")
FACT_NOT_FOUND = Kind("npt:fact-not-found", HTTPStatus.NOT_FOUND, "No such fact")
MODEL_NOT_FOUND = Kind("npt:model-not-found", HTTPStatus.NOT_FOUND, "No such model")
VERSION_NOT_FOUND = Kind("npt:version-not-found", HTTPStatus.NOT_FOUND, "No such version")
VERSION_GONE = Kind("npt:version-gone", HTTPStatus.GONE, "The version is no longer kept")
RETRACTED = Kind("npt:fact-already-retracted", HTTPStatus.CONFLICT, "The fact is retracted already")
KEY_CONFLICT = Kind("npt:idempotency-conflict", HTTPStatus.CONFLICT, "The key was used for another request")
KEY_IN_FLIGHT = Kind(
    "npt:idempotency-key-in-flight",
    HTTPStatus.CONFLICT,
    "A request with this key is under way",
    retry=True,
)
STALE = Kind("npt:stale-version", HTTPStatus.PRECONDITION_FAILED, "Another write came first")
PROMPT_TOO_LONG = Kind(
    "npt:prompt-too-long", HTTPStatus.UNPROCESSABLE_ENTITY, "The prompt does not fit the model"
)
UNREADABLE = Kind(
    "npt:fact-unreadable",
    HTTPStatus.UNPROCESSABLE_ENTITY,
    "The model cannot answer from this fact even with it in context",
)
NOT_RECALLED = Kind(
    "npt:fact-not-recalled",
    HTTPStatus.UNPROCESSABLE_ENTITY,
    "The model does not recall this fact after writing it, so it was not kept",
)
OVERLOADED = Kind("npt:overloaded", HTTPStatus.SERVICE_UNAVAILABLE, "Too many requests wait", retry=True)
DRAINING = Kind("npt:draining", HTTPStatus.SERVICE_UNAVAILABLE, "The server is shutting down", retry=True)
NOT_READY = Kind("npt:not-ready", HTTPStatus.SERVICE_UNAVAILABLE, "Traffic should go elsewhere", retry=True)
NOT_REACHED = Kind(
    "npt:version-not-reached",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The version asked for is not published yet",
    retry=True,
)
READ_ONLY = Kind("npt:read-only", HTTPStatus.SERVICE_UNAVAILABLE, "Facts can be read but not written")
UNAUTHENTICATED = Kind("npt:unauthenticated", HTTPStatus.UNAUTHORIZED, "A valid API key is needed")
FORBIDDEN = Kind("npt:forbidden", HTTPStatus.FORBIDDEN, "This is not allowed to whoever asks")
RATE = Kind("npt:rate-limited", HTTPStatus.TOO_MANY_REQUESTS, "The API key allows no more requests now")
CONTRADICTION = Kind(
    "npt:fact-conflict", HTTPStatus.CONFLICT, "A stored fact answers the same question otherwise"
)
SELF_CONTRADICTION = Kind(
    "npt:batch-conflict", HTTPStatus.CONFLICT, "Two facts of the batch contradict each other"
)
CANCELLED = Kind("npt:cancelled", HTTPStatus.CONFLICT, "The write was cancelled")
FOLD_REFUSED = Kind(
    "npt:fold-refused",
    HTTPStatus.UNPROCESSABLE_ENTITY,
    "The fold would change other answers, so it was not made",
)
NOT_EXPORTABLE = Kind(
    "npt:not-exportable", HTTPStatus.CONFLICT, "The format cannot express what the version holds"
)
OPERATION_NOT_FOUND = Kind("npt:operation-not-found", HTTPStatus.NOT_FOUND, "No such operation")
OPERATION_ENDED = Kind(
    "npt:operation-ended", HTTPStatus.CONFLICT, "The operation cannot be cancelled any more"
)
OPERATION_ELSEWHERE = Kind(
    "npt:operation-elsewhere", HTTPStatus.CONFLICT, "The operation runs on another replica"
)
INTERRUPTED = Kind(
    "npt:interrupted",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The server stopped before the write was done",
    retry=True,
)
CONTENDED = Kind(
    "npt:contended", HTTPStatus.SERVICE_UNAVAILABLE, "Other replicas were always quicker", retry=True
)
UNAVAILABLE = Kind(
    "npt:storage-unavailable",
    HTTPStatus.SERVICE_UNAVAILABLE,
    "The database or the object store does not answer",
    retry=True,
)
LEDGER_DAMAGED = Kind("npt:ledger-damaged", HTTPStatus.INTERNAL_SERVER_ERROR, "The stored history is damaged")
DISK_FULL = Kind("npt:disk-full", HTTPStatus.INSUFFICIENT_STORAGE, "There is no room on the disk")
BLOB_DAMAGED = Kind(
    "npt:blob-damaged", HTTPStatus.INTERNAL_SERVER_ERROR, "Stored weights are missing, damaged or encrypted"
)

TABLE: Mapping[type[Exception], Kind] = {
    MalformedHeader: MALFORMED,
    UnknownModel: MODEL_NOT_FOUND,
    NotReady: NOT_READY,
    VersionNotReached: NOT_REACHED,
    FailedGeneration: INTERNAL,
    engine.InvalidSampling: INVALID,
    engine.EmptyPrompt: INVALID,
    engine.PromptTooLong: PROMPT_TOO_LONG,
    engine.UnknownToken: INVALID,
    engine.VersionNotFound: VERSION_NOT_FOUND,
    engine.VersionGone: VERSION_GONE,
    engine.QueueFull: OVERLOADED,
    engine.EngineClosed: DRAINING,
    engine.EngineFailed: NOT_READY,
    consolidation.UnreadableFact: UNREADABLE,
    consolidation.NotRecalled: NOT_RECALLED,
    consolidation.InvalidRequest: INVALID,
    consolidation.FoldRefused: FOLD_REFUSED,
    commands.FactNotFound: FACT_NOT_FOUND,
    commands.FactAlreadyRetracted: RETRACTED,
    commands.UnknownVersion: VERSION_NOT_FOUND,
    commands.StaleVersion: STALE,
    commands.KeyConflict: KEY_CONFLICT,
    commands.KeyInFlight: KEY_IN_FLIGHT,
    commands.InvalidField: INVALID,
    commands.TooManyWrites: OVERLOADED,
    access.NotAuthenticated: UNAUTHENTICATED,
    access.ScopeMissing: FORBIDDEN,
    access.RateExceeded: RATE,
    access.ConcurrencyExceeded: RATE,
    commands.Contradiction: CONTRADICTION,
    commands.SelfContradiction: SELF_CONTRADICTION,
    commands.RefusedInBatch: NOT_RECALLED,
    commands.Cancelled: CANCELLED,
    commands.Contended: CONTENDED,
    commands.NotExportable: NOT_EXPORTABLE,
    commands.OperationNotFound: OPERATION_NOT_FOUND,
    commands.OperationEnded: OPERATION_ENDED,
    commands.OperationElsewhere: OPERATION_ELSEWHERE,
    commands.TooManyOperations: OVERLOADED,
    commands.Interrupted: INTERRUPTED,
    ledger.LedgerUnavailable: UNAVAILABLE,
    ledger.LedgerDamaged: LEDGER_DAMAGED,
    commands.ReadOnly: READ_ONLY,
    storage.DiskFull: DISK_FULL,
    storage.StorageFailed: READ_ONLY,
    blobs.BlobMissing: BLOB_DAMAGED,
    blobs.BlobDamaged: BLOB_DAMAGED,
    blobs.BlobSealed: BLOB_DAMAGED,
    blobs.BlobUnavailable: UNAVAILABLE,
}

_BY_STATUS: Mapping[int, Kind] = {
    400: MALFORMED,
    404: NOT_FOUND,
    403: FORBIDDEN,
    405: NOT_ALLOWED,
    408: TOO_SLOW,
    413: TOO_LARGE,
    415: MEDIA,
    421: FOREIGN_HOST,
}


def install(app: FastAPI) -> None:
    """Answer every error with problem details."""
    for error in TABLE:
        app.add_exception_handler(error, _from_table)
    app.add_exception_handler(RequestValidationError, _from_validation)
    app.add_exception_handler(HTTPException, _from_http)


def problem_of(error: Exception) -> Problem:
    """The problem an error stands for; an unknown one tells the client nothing."""
    kind = _kind(error)
    if kind is None:
        return _problem(INTERNAL)
    if isinstance(error, commands.RefusedInBatch):
        return _of_batch(error)
    report = getattr(error, "report", None)
    gone = error if isinstance(error, engine.VersionGone) else None
    return _problem(
        kind,
        str(error),
        errors=_fields(error),
        report=None if report is None else report.as_dict(),
        asked_version=gone and gone.version,
        oldest_version=gone and gone.oldest,
        conflicts=list(error.conflicts) if isinstance(error, commands.Contradiction) else None,
    )


def _kind(error: Exception) -> Kind | None:
    return next((TABLE[cls] for cls in type(error).__mro__ if cls in TABLE), None)


def _of_batch(error: commands.RefusedInBatch) -> Problem:
    """The kind is that of the first refused fact; every one is told, with what was measured."""
    refused = {i: problem_of(each) for i, each in sorted(error.refused.items())}
    first = next(iter(refused.values()))
    return first.model_copy(
        update={
            "detail": str(error),
            "errors": [
                FieldProblem(field=f"facts.{i}", reason=str(error.refused[i]), report=problem.report)
                for i, problem in refused.items()
            ],
            "report": None,
        }
    )


def respond(request: Request, problem: Problem, headers: Mapping[str, str] = {}) -> Response:
    """A problem as the answer to `request`."""
    state = request.scope.get("state", {})
    host = getattr(request.app.state, "host", None) if "app" in request.scope else None
    complete = problem.model_copy(
        update={
            "request_id": state.get("request_id"),
            "weights_version": None if host is None else host.version,
        }
    )
    retry = {"Retry-After": str(RETRY_AFTER_S)} if problem.type in _RETRIED else {}
    if request.scope["path"].startswith(OPENAI):
        return Response(
            openai_error(complete).model_dump_json(),
            status_code=_openai_status(complete.status),
            media_type="application/json",
            headers={**retry, **headers},
        )
    return Response(
        complete.model_dump_json(exclude_none=True),
        status_code=problem.status,
        media_type=MEDIA_TYPE,
        headers={**retry, **headers},
    )


def openai_error(problem: Problem) -> openai.Error:
    """A problem in OpenAI's shape: its detail, its type as the code, the first field as the parameter."""
    special = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    usual = "server_error" if problem.status >= 500 else "invalid_request_error"
    own = problem.type.partition(":")[2].replace("-", "_")
    return openai.Error(
        error=openai.ErrorBody(
            message=problem.detail or problem.title,
            type=special.get(problem.status, usual),
            param=problem.errors[0].field if problem.errors else None,
            code="context_length_exceeded" if problem.type == PROMPT_TOO_LONG.type else own,
        )
    )


def _openai_status(status: int) -> int:
    """OpenAI answers 400 where a request does not fit its schema."""
    return 400 if status == 422 else status


def example_of(kind: Kind) -> Problem:
    """A problem of this kind without particulars."""
    return _problem(kind)


def access_headers(error: Exception) -> dict[str, str]:
    """What HTTP wants beside a refusal."""
    if isinstance(error, access.NotAuthenticated):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, access.RateExceeded | access.ConcurrencyExceeded):
        return {"Retry-After": str(error.retry_after_s)}
    return {}


def for_status(status: int, detail: str | None = None) -> Problem:
    """The problem of a bare HTTP status."""
    return _problem(_BY_STATUS.get(status, INTERNAL), detail)


def kinds() -> Iterator[Kind]:
    """Every problem type there is."""
    yield from dict.fromkeys([MALFORMED, *TABLE.values(), *_BY_STATUS.values(), INTERNAL])


def _problem(kind: Kind, detail: str | None = None, **extra: Any) -> Problem:
    return Problem(type=kind.type, title=kind.title, status=int(kind.status), detail=detail, **extra)


_TYPE = re.compile(r"\[|^(constrained-)?(str|int)$")
_OF_A_FIELD = (
    consolidation.InvalidRequest,
    engine.InvalidSampling,
    engine.UnknownToken,
    commands.InvalidField,
)


def _fields(error: Exception) -> list[FieldProblem] | None:
    if not isinstance(error, _OF_A_FIELD):
        return None
    return [FieldProblem(field=error.field, reason=error.reason)]


def _from_table(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    if problem.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("refused for what only an operator can mend", type=problem.type, reason=problem.detail)
    return respond(request, problem)


def _from_http(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    cause = error.__cause__
    detail = f"not UTF-8: {cause}" if isinstance(cause, UnicodeDecodeError) else error.detail
    allowed = {"Allow": ", ".join(_methods(request))} if error.status_code == 405 else {}
    return respond(request, for_status(error.status_code, detail), {**(error.headers or {}), **allowed})


def _methods(request: Request) -> list[str]:
    """Offered at the address of a request: FastAPI names those of the first route alone."""
    found = [route for route in iter_route_contexts(request.app.routes) if _is_at(route, request)]
    return sorted({method for route in found for method in route.methods or ()})


def _is_at(route: RouteContext, request: Request) -> bool:
    match, _ = route.matches(request.scope)
    return bool(match is not Match.NONE)


def _from_validation(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    found: Sequence[Mapping[str, Any]] = error.errors()
    if any(entry["type"] == "json_invalid" for entry in found):
        return respond(request, _problem(MALFORMED, f"not JSON: {found[0]['ctx']['error']}"))
    if isinstance(error.body, bytes) and error.body:
        return respond(request, _problem(MEDIA, "send Content-Type: application/json"))
    told = dict.fromkeys((_name(entry), _reason(entry)) for entry in found)
    errors = [FieldProblem(field=field, reason=reason) for field, reason in told]
    detail = "; ".join(f"{entry.field}: {entry.reason}" for entry in errors)
    return respond(request, _problem(INVALID, detail, errors=errors))


def _name(entry: Mapping[str, Any]) -> str:
    """`("body", "questions", 0, "answer")` as `questions.0.answer`. Where a field may be of several types,
    pydantic puts the one it tried behind the name; clients know nothing of those.
    """
    first, *inner = entry["loc"]
    last = inner[-1:] if entry["type"] == "extra_forbidden" else []  # a client's own word
    parts = [part for part in inner[: len(inner) - len(last)] if not _TYPE.search(str(part))]
    return ".".join(map(str, [*parts, *last])) or str(first)


def _reason(entry: Mapping[str, Any]) -> str:
    if entry["type"] == "extra_forbidden":
        return "unknown field"
    return str(entry["msg"]).removeprefix("Value error, ")


_RETRIED = frozenset(kind.type for kind in kinds() if kind.retry)
