"""Checks of schemathesis that are our own."""

import re
from collections.abc import Mapping
from typing import Any

import schemathesis
from schemathesis.core.failures import Failure

UNSAYABLE: Mapping[str, str] = {
    "cursor": "is a text that the server gave before",
    "body": "is about several fields, whose descriptions say so",
    "layers": "must be layers that the model has",
    "token_idx": "is read by one strategy, and must lie in the fact",
    "preset": "is read by one strategy",
    "expires_at": "must lie in the future",
    "metadata": "must not exceed a size as JSON",
    "facts": "must hold what can be folded, or does not contradict itself",
    "prompt": "must hold token ids that the model has",
}
"""Fields that a schema allows and the service may still refuse."""
SERVED = "reference"
"""The model behind every server of these tests."""
REASONS = frozenset(
    {"npt:prompt-too-long", "npt:fact-unreadable", "npt:fact-not-recalled", "npt:fold-refused"}
)
"""What the model says to a request that is well formed."""


class RefusedWithoutReason(Failure):
    """The document allows what the service refuses."""

    def __init__(self, operation: str, message: str) -> None:
        super().__init__(operation=operation, title="Refused without a reason", message=message)


@schemathesis.check
def refused_for_a_reason(ctx: Any, response: Any, case: Any) -> None:
    """A request that fits the document is refused as ill-formed only where no document could have said so."""
    if response.status_code not in (400, 422) or case.meta is None:
        return
    if not case.meta.generation.mode.is_positive or not _headers_fit(case):
        return
    if _is_understood(response.json()):
        return
    raise RefusedWithoutReason(case.operation.label, response.text)


def _headers_fit(case: Any) -> bool:
    """Schemathesis cannot make quoted texts by a pattern, and sends others as if they fitted."""
    described = case.operation.definition.raw.get("parameters", ())
    sent = {name.lower(): value for name, value in (case.headers or {}).items()}
    return all(
        re.search(each["schema"]["pattern"], sent[each["name"].lower()])
        for each in described
        if "pattern" in each["schema"] and each["name"].lower() in sent
    )


def _is_understood(problem: Any) -> bool:
    if "error" in problem:  # OpenAI's shape
        error = problem["error"]
        return error["code"] == "context_length_exceeded" or _is_unsayable(error["param"] or "")
    if problem["type"] in REASONS:
        return True
    named = [entry["field"] for entry in problem.get("errors", ())]
    return bool(named) and all(map(_is_unsayable, named))


def _is_unsayable(field: str) -> bool:
    return any(part in UNSAYABLE for part in field.split("."))


@schemathesis.hook("map_body")
def ask_what_is_there(_: Any, body: Any) -> Any:
    """Most made-up models and versions do not exist; with those that do, requests get further."""
    if not isinstance(body, dict):
        return body
    known: dict[str, Any] = {}
    if isinstance(body.get("model"), str) and 1 <= len(body["model"]) <= 300:
        known["model"] = SERVED
    for field in ("weights_version", "min_weights_version"):
        if type(body.get(field)) is int and 0 <= body[field] < 2**63:
            known[field] = 0
    return {**body, **known}
