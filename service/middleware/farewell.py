"""A server that is about to end lets go of its connections, one answer after the other."""

from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Farewell:
    """From the first signal on, every answer is the last one of its connection: a client that keeps one opens
    the next where traffic goes by then, and is not cut off between two requests. A stream always is: the
    signal may come after it has begun.
    """

    def __init__(self, app: ASGIApp, leaving: Callable[[], bool]) -> None:
        self._app = app
        self._leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def last(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if self._leaving() or headers.get("Content-Type", "").startswith("text/event-stream"):
                    headers["Connection"] = "close"
            await send(message)

        await self._app(scope, receive, last)
