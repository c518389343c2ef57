"""Problems an endpoint may answer with, as OpenAPI wants them."""

from collections import defaultdict
from typing import Any, cast

from pydantic import BaseModel

from service.examples import EXAMPLES
from service.problems import (
    FORBIDDEN,
    MEDIA_TYPE,
    OPENAI,
    RATE,
    READ_ONLY,
    UNAUTHENTICATED,
    UNAVAILABLE,
    Kind,
    example_of,
    openai_error,
)
from service.schemas.generate import TokenChunk
from service.schemas.openai import ChatChunk, Error
from service.schemas.operations import OperationOut
from service.schemas.problem import Problem


def _header(description: str, example: str, **schema: Any) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string", **schema}, "example": example}


def _link(operation: str, parameter: str, where: str = "$response.body#/id") -> dict[str, Any]:
    return {"operationId": operation, "parameters": {parameter: where}}


EVERYWHERE = {
    "X-Request-ID": _header("the client's, if it sent a sane one", "abc-1", pattern=r"^[\w.:-]{1,128}$"),
    "X-NPT-Weights-Version": _header(
        "the version that answered, or else the newest one", "7", pattern=r"^\d+$"
    ),
}
"""Headers of every answer, which refer to one description."""
REPLAYED = {
    "Idempotency-Replayed": _header(
        "the key was used before: this is the answer of then", "true", const="true"
    )
}
WRITTEN = {"Location": _header("where the fact is", "/facts/fact_3391b964df940d8b"), **REPLAYED}
LINKS = {
    "fact": _link("get_fact", "fact_id"),
    "retraction": _link("retract_fact", "fact_id"),
}
_SECONDS = {"description": "seconds until it makes sense to ask", "schema": {"type": "integer", "minimum": 1}}
ASK_AGAIN = {"Retry-After": _SECONDS}
ACCEPTED: dict[str, Any] = {
    "model": OperationOut,
    "headers": {
        "Location": _header("where the operation is", "/operations/op_18a2f0c4d1e2b3a45f6e7d8c"),
        "Preference-Applied": _header("what was preferred", "respond-async", const="respond-async"),
        **ASK_AGAIN,
    },
    "links": {
        "operation": _link("get_operation", "operation_id"),
        "cancellation": _link("cancel_operation", "operation_id"),
    },
}
"""An answer 202, but for its description."""

READING = UNAVAILABLE, READ_ONLY
"""Of an endpoint that asks the ledger."""
REFERENCE = {"$ref": "#/components/schemas/Problem"}


def events(*kinds: tuple[str | None, type[BaseModel] | str]) -> dict[str, Any]:
    """Content of an event stream: for each kind of event its name, if it has one, and what its data are: a
    body as JSON, or a fixed text.
    """
    return {"text/event-stream": {"itemSchema": {"anyOf": [_event(name, data) for name, data in kinds]}}}


def _event(name: str | None, data: type[BaseModel] | str) -> dict[str, Any]:
    body = (
        {"const": data}
        if isinstance(data, str)
        else {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": {"$ref": f"#/components/schemas/{data.__name__}"},
        }
    )
    if name is None:
        return {"type": "object", "required": ["data"], "properties": {"data": body}}
    named = {"event": {"const": name}, "data": body}
    return {"type": "object", "required": ["event", "data"], "properties": named}


def answers(*kinds: Kind) -> dict[int | str, dict[str, Any]]:
    """Response entries, one a status, with an example for each problem type."""
    by_status: dict[int, list[Kind]] = defaultdict(list)
    for kind in kinds:
        by_status[int(kind.status)].append(kind)
    return {status: _entry(found) for status, found in by_status.items()}


def openai_answers(*kinds: Kind) -> dict[int | str, dict[str, Any]]:
    """As `answers`, in OpenAI's shape."""
    found: dict[int | str, dict[str, Any]] = {}
    for kind in (*kinds, UNAUTHENTICATED, FORBIDDEN, RATE):
        status = 400 if kind.status == 422 else int(kind.status)
        entry = found.setdefault(
            status,
            {
                "model": Error,
                "description": kind.title,
                "content": {"application/json": {"examples": {}}},
            },
        )
        example = openai_error(example_of(kind)).model_dump()
        entry["content"]["application/json"]["examples"][kind.type] = {"value": example}
        if headers := _headers(kind):
            entry.setdefault("headers", {}).update(headers)
    return found


def _entry(kinds: list[Kind]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "description": "; ".join(kind.title for kind in kinds),
        "content": {
            MEDIA_TYPE: {
                "schema": REFERENCE,
                "examples": {kind.type: {"value": _example(kind)} for kind in kinds},
            }
        },
    }
    headers = _headers(*kinds)
    return {**entry, "headers": headers} if headers else entry


def _headers(*kinds: Kind) -> dict[str, Any]:
    """What HTTP wants beside these refusals."""
    asks = {"WWW-Authenticate": _header("how to show a key", "Bearer")} if UNAUTHENTICATED in kinds else {}
    return {**asks, **(ASK_AGAIN if RATE in kinds or any(kind.retry for kind in kinds) else {})}


def _example(kind: Kind) -> dict[str, Any]:
    return {"type": kind.type, "title": kind.title, "status": int(kind.status)}


def completed(described: dict[str, Any]) -> dict[str, Any]:
    """What FastAPI makes of the routes, with problems as we answer them, what it does not describe, and an
    example for each body."""
    schemas = described["components"]["schemas"]
    for model in (Problem, TokenChunk, ChatChunk):
        own = model.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
        schemas.update(own.pop("$defs", {}))
        schemas[model.__name__] = own
    described["components"]["headers"] = EVERYWHERE
    for path, methods in described["paths"].items():
        for operation in methods.values():
            if path.startswith(OPENAI):  # OpenAI answers 400 where others answer 422
                operation["responses"].pop("422", None)
                _restore_nulls(operation["responses"])
            for response in operation["responses"].values():
                references = {name: {"$ref": f"#/components/headers/{name}"} for name in EVERYWHERE}
                response.setdefault("headers", {}).update(references)
            for parameter in operation.get("parameters", ()):
                _without_null(parameter["schema"])
    # FastAPI's own error shape, which no endpoint here answers with.
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for name in EXAMPLES.keys() & schemas.keys():
        schemas[name]["examples"] = [EXAMPLES[name]]
    described["components"]["schemas"] = dict(sorted(schemas.items()))
    return cast(dict[str, Any], _with_exact_limits(described))


def _without_null(schema: dict[str, Any]) -> None:
    """A parameter is there or not; the text `null` is no null."""
    given = [option for option in schema.pop("anyOf", ()) if option != {"type": "null"}]
    schema.update(*given)


def _with_exact_limits(node: Any) -> Any:
    """FastAPI keeps limits as floats, and 2**63 is another number to those who read it as one."""
    if isinstance(node, list):
        return [_with_exact_limits(each) for each in node]
    if not isinstance(node, dict):
        return node
    exact = _LIMITS if node.get("type") == "integer" else ()
    return {name: int(value) if name in exact else _with_exact_limits(value) for name, value in node.items()}


_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def _restore_nulls(responses: dict[str, Any]) -> None:
    """FastAPI leaves out what is null, in examples, too; OpenAI's errors always name a `param`."""
    for response in responses.values():
        for example in response["content"].get("application/json", {}).get("examples", {}).values():
            example["value"]["error"].setdefault("param", None)
