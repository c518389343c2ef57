"""A name for every request: the client's, if it gave a sane one; and the trace that it belongs to."""

import re
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import tracing

HEADER = "X-Request-ID"
_SANE = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class RequestId:
    """Puts the name into `scope["state"]`, into every log line and into the answer; the trace and its span
    into log lines.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _SANE.fullmatch(given) else uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id, **tracing.names()):
            await self._app(scope, receive, named)
