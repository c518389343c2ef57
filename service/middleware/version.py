"""Which weights answered."""

from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-NPT-Weights-Version"


class Version:
    """Adds the newest version to every answer that does not name the one it was made with."""

    def __init__(self, app: ASGIApp, current: Callable[[], int]) -> None:
        self._app = app
        self._current = current

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def versioned(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault(HEADER, str(self._current()))
            await send(message)

        await self._app(scope, receive, versioned)
