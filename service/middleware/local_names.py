"""A page on the web can have its own name resolve to this machine, and then post facts here."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service import problems
from service.settings import is_loopback


class LocalNames:
    """421 unless the client calls the server by a loopback name or address.

    For a server without keys: nothing but the name tells such a page from a local client.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_local(Headers(scope=scope).get("host", "")):
            await self._app(scope, receive, send)
            return
        problem = problems.for_status(421, "use localhost or 127.0.0.1")
        await problems.respond(Request(scope), problem)(scope, receive, send)


def _is_local(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name is not None and is_loopback(name)
