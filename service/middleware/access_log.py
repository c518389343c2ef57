"""One line and one observation per request; never what was asked or answered."""

import time

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import Metrics
from service.middleware.routes import method_of, route_of
from service.middleware.version import HEADER

log = structlog.get_logger("npt.access")


class AccessLog:
    """Counts from the first byte in until the last byte is handed on: whoever has read a whole answer finds
    it counted.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, version, told = 500, "", False
        started = time.perf_counter()

        def tell() -> None:
            nonlocal told
            if not told:
                told = True
                self._tell(scope, status, version, time.perf_counter() - started)

        async def watched(message: Message) -> None:
            nonlocal status, version
            if message["type"] == "http.response.start":
                status = message["status"]
                version = Headers(raw=message["headers"]).get(HEADER, "")
            elif message["type"] == "http.response.body" and not message.get("more_body", False):
                tell()
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            tell()

    def _tell(self, scope: Scope, status: int, version: str, seconds: float) -> None:
        self._metrics.request_duration.labels(method_of(scope), route_of(scope), status).observe(seconds)
        log.info(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=status,
            weights_version=version,
            ms=round(seconds * 1000, 1),
        )
