"""One line and one observation per request; never what was asked or answered."""

import time

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.metrics import Metrics
from service.middleware.version import HEADER

log = structlog.get_logger("npt.access")

UNMATCHED = "unmatched"
"""The route of addresses that do not exist: a label must not grow with what clients make up."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"


class AccessLog:
    """Counts from the first byte in to the last byte out."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, version = 500, ""
        started = time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status, version
            if message["type"] == "http.response.start":
                status = message["status"]
                version = Headers(raw=message["headers"]).get(HEADER, "")
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", UNMATCHED)
            method = scope["method"] if scope["method"] in METHODS else OTHER
            self._metrics.request_duration.labels(method, route, status).observe(seconds)
            log.info(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                weights_version=version,
                ms=round(seconds * 1000, 1),
            )
