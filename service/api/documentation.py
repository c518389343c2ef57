"""Problems an endpoint may answer with, as OpenAPI wants them."""

from collections import defaultdict
from typing import Any

from service.problems import MEDIA_TYPE, Kind

REFERENCE = {"$ref": "#/components/schemas/Problem"}


def answers(*kinds: Kind) -> dict[int | str, dict[str, Any]]:
    """Response entries, one a status, with an example for each problem type."""
    by_status: dict[int, list[Kind]] = defaultdict(list)
    for kind in kinds:
        by_status[int(kind.status)].append(kind)
    return {status: _entry(found) for status, found in by_status.items()}


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
