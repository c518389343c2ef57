"""Whether an answer is one that the document promises."""

import json
import re
from typing import Any

from service import problems
from service.problems import MEDIA_TYPE, OPENAI
from torture.fuzz.requests import Request
from torture.fuzz.wire import Answer

ANYWHERE = frozenset({400, 401, 404, 405, 413, 421, 431})
"""What is refused before an operation is found, or instead of one."""
_KINDS = {kind.type: int(kind.status) for kind in problems.kinds()}
_CODES = {kind.type.partition(":")[2].replace("-", "_") for kind in problems.kinds()}


class Judge:
    """Knows the document."""

    def __init__(self, described: Any) -> None:
        self._operations = {
            (
                method.upper(),
                re.compile(re.sub(r"\{\w+\}", "[^/]+", path).replace("[^/]+", ".+") + r"/?"),
            ): operation
            for path, methods in described["paths"].items()
            for method, operation in methods.items()
        }

    def objection(self, request: Request, answer: Answer) -> str | None:
        """What is wrong with an answer, in words."""
        responses = self._responses(request)
        if answer.status >= 500:
            return self._of_failure(answer, responses)
        if answer.status < 400:
            documented = any(str(answer.status) in each for each in responses)
            return None if documented or self._is_open(request) else "not documented"
        if answer.status not in ANYWHERE and not any(str(answer.status) in each for each in responses):
            return "not documented"
        return None if request.method == b"HEAD" else _problem(answer)

    def _of_failure(self, answer: Answer, responses: list[Any]) -> str | None:
        if answer.status != 503 or "retry-after" not in answer.headers:
            return "a failure"
        return _problem(answer) if any("503" in each for each in responses) else "not documented"

    def _responses(self, request: Request) -> list[Any]:
        method, path = request.method.decode("latin-1"), request.target.partition(b"?")[0].decode("latin-1")
        return [
            operation["responses"]
            for (offered, pattern), operation in self._operations.items()
            if offered == method and pattern.fullmatch(path)
        ]

    def _is_open(self, request: Request) -> bool:
        return request.target.partition(b"?")[0] in (b"/docs", b"/openapi.json")


def _problem(answer: Answer) -> str | None:
    """What a problem lacks, in either shape."""
    media = answer.headers.get("content-type")
    if media not in (MEDIA_TYPE, "application/json"):
        return f"a refusal of type {media}"
    try:
        told = json.loads(answer.body)
    except ValueError:
        return "a refusal that is no JSON"
    if media == MEDIA_TYPE:
        return (
            None
            if _KINDS.get(told.get("type")) == answer.status == told.get("status")
            else "no known problem"
        )
    code = told["error"]["code"]
    return None if code in _CODES or code == "context_length_exceeded" else f"no known code below {OPENAI}"
