"""A page on the web can have its own name resolve to this machine, and then post facts here."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service import problems
from service.access import Access
from service.settings import is_loopback


class LocalNames:
    """421 unless the client calls the server by a loopback name or address, and no page of another site
    sent it.

    For a server without keys: nothing but the names tells such a page from a local client. Once there are
    keys, a page has none.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._access.demanded or _all_local(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        problem = problems.for_status(421, "use localhost or 127.0.0.1, and no page of another site")
        await problems.respond(Request(scope), problem)(scope, receive, send)


def _all_local(headers: Headers) -> bool:
    origin = headers.get("origin")
    from_here = origin is None or _is_local(origin.partition("://")[2])
    return from_here and _is_local(headers.get("host", ""))


def _is_local(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name is not None and is_loopback(name)
