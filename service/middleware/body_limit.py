"""No request may make the server read without end."""

import asyncio

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import problems


class BodyLimit:
    """413 for a body above `limit` bytes, announced or not, before more of it is read; 408 for one that is
    not there after `seconds`.

    Starlette has a limiter too; it answers in plain text, this one with problem details.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self._app = app
        self._limit = limit
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced) > self._limit:
            problem = problems.for_status(413, self._detail)
            await problems.respond(Request(scope), problem)(scope, receive, send)
            return
        await self._app(scope, self._counted(receive), send)

    @property
    def _detail(self) -> str:
        return f"at most {self._limit} bytes"

    def _counted(self, receive: Receive) -> Receive:
        total, complete = 0, False
        latest = asyncio.get_running_loop().time() + self._seconds

        async def counting() -> Message:
            nonlocal total, complete
            try:
                async with asyncio.timeout_at(None if complete else latest):
                    message = await receive()
            except TimeoutError as error:
                detail = f"the body must be here within {self._seconds:g} s"
                raise HTTPException(408, detail, {"Connection": "close"}) from error
            complete = not message.get("more_body", False)
            total += len(message.get("body", b""))
            if total > self._limit:
                raise HTTPException(413, self._detail)
            return message

        return counting
