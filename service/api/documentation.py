"""Problems an endpoint may answer with, as OpenAPI wants them."""

from collections import defaultdict
from typing import Any

from service.examples import EXAMPLES
from service.problems import (
    FORBIDDEN,
    MEDIA_TYPE,
    OPENAI,
    RATE,
    UNAUTHENTICATED,
    Kind,
    example_of,
    openai_error,
)
from service.schemas.openai import Error
from service.schemas.problem import Problem


def _header(description: str, example: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}, "example": example}


REPLAYED = {"Idempotency-Replayed": _header("the key was used before: this is the answer of then", "true")}
WRITTEN = {"Location": _header("where the fact is", "/facts/fact_3391b964df940d8b"), **REPLAYED}
ACCEPTED = {
    "Location": _header("where the operation is", "/operations/op_18a2f0c4d1e2b3a45f6e7d8c"),
    "Preference-Applied": _header("what was preferred", "respond-async"),
    "Retry-After": _header("seconds until it makes sense to ask", "1"),
}

REFERENCE = {"$ref": "#/components/schemas/Problem"}


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
    if any(kind.retry for kind in kinds):
        entry["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
    return entry


def _example(kind: Kind) -> dict[str, Any]:
    return {"type": kind.type, "title": kind.title, "status": int(kind.status)}


def completed(described: dict[str, Any]) -> dict[str, Any]:
    """What FastAPI makes of the routes, with problems as we answer them, and an example for each body."""
    schemas = described["components"]["schemas"]
    own = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(own.pop("$defs", {}))
    schemas["Problem"] = own
    for path, methods in described["paths"].items():
        if path.startswith(OPENAI):  # OpenAI answers 400 where others answer 422
            for operation in methods.values():
                operation["responses"].pop("422", None)
                _restore_nulls(operation["responses"])
    # FastAPI's own error shape, which no endpoint here answers with.
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for name in EXAMPLES.keys() & schemas.keys():
        schemas[name]["examples"] = [EXAMPLES[name]]
    described["components"]["schemas"] = dict(sorted(schemas.items()))
    return described


def _restore_nulls(responses: dict[str, Any]) -> None:
    """FastAPI leaves out what is null, in examples, too; OpenAI's errors always name a `param`."""
    for response in responses.values():
        for example in response["content"].get("application/json", {}).get("examples", {}).values():
            example["value"]["error"].setdefault("param", None)
