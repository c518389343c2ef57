"""A span for every request: OpenTelemetry's conventions for HTTP servers."""

from opentelemetry.trace import SpanKind, Status, StatusCode
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import tracing
from service.middleware.routes import method_of, route_of
from service.middleware.version import HEADER

PROBES = frozenset({"/livez", "/readyz", "/startupz", "/metrics"})
"""Asked all the time, and by nobody who looks at traces."""


class Traces:
    """Goes on with the trace that `traceparent` names, until the last byte of the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        context = tracing.caller(dict(Headers(scope=scope)))
        method = method_of(scope)
        attributes = {"http.request.method": method, "url.path": scope["path"], "url.scheme": scope["scheme"]}
        with tracing.span(method, SpanKind.SERVER, context, attributes) as span:

            async def watched(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status, version = message["status"], Headers(raw=message["headers"]).get(HEADER)
                    span.set_attribute("http.response.status_code", status)
                    if version is not None:
                        span.set_attribute(tracing.VERSION, int(version))
                    if status >= 500:
                        span.set_status(Status(StatusCode.ERROR))
                await send(message)

            try:
                await self._app(scope, receive, watched)
            finally:
                if span.is_recording():
                    route = route_of(scope)
                    span.update_name(f"{method} {route}")
                    span.set_attribute("http.route", route)
