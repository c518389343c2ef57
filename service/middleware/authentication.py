"""Who is asking: refused before anything else is done for them."""

import structlog
from anyio import to_thread
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service import problems
from service.access import Access, AccessError
from service.metrics import Metrics

OPEN = frozenset({"/livez", "/readyz", "/startupz", "/metrics", "/docs", "/openapi.json", "/console"})
"""Probes and scrapers have no keys; what they read tells nothing of prompts or facts. The console asks for a
key itself, and shows it to the API.
"""
OPEN_BELOW = ("/console/", "/docs-assets/")
"""Everything under them is files of pages."""


class Authentication:
    """Puts the key into `scope["state"]`, and its id as the actor; 401 and 429 without one that is valid and
    within its limits.
    """

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics) -> None:
        self._app = app
        self._access = access
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        if self._access.stale:
            await to_thread.run_sync(self._access.refresh)
        try:
            key = self._access.identify(Headers(scope=scope).get("authorization"))
            if key is None:
                await self._app(scope, receive, send)
                return
            with self._access.admitted(key):
                scope.setdefault("state", {}).update(key=key, actor=key.id)
                structlog.contextvars.bind_contextvars(key=key.id)
                await self._app(scope, receive, send)
        except AccessError as error:
            problem = problems.problem_of(error)
            self._metrics.rejections.labels(problem.type.removeprefix("npt:").replace("-", "_")).inc()
            response = problems.respond(Request(scope), problem, problems.access_headers(error))
            await response(scope, receive, send)


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith(OPEN_BELOW)
