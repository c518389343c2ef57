"""A page on the web can have its own name resolve to this machine, and then post facts here."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service import problems
from service.access import Access
from service.settings import is_loopback

SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
"""They change nothing, and a page of another origin cannot read what they answer."""


class LocalNames:
    """For a server without keys, which takes whoever reaches it for a friend: 421 unless it is called by a
    loopback name or address (or `any_name`), and 403 for what a page of another origin sends.

    Once there are keys, such a page has none.
    """

    def __init__(self, app: ASGIApp, access: Access, any_name: bool) -> None:
        self._app = app
        self._access = access
        self._any_name = any_name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._access.demanded:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if not (self._any_name or _is_local(headers.get("host", ""))):
            problem = problems.for_status(421, "use localhost or 127.0.0.1")
        elif scope["method"] not in SAFE and _is_of_another_origin(headers):
            problem = problems.for_status(403, "a page of another origin sent it")
        else:
            await self._app(scope, receive, send)
            return
        await problems.respond(Request(scope), problem)(scope, receive, send)


def _is_of_another_origin(headers: Headers) -> bool:
    """Browsers say where a request comes from; another port of this machine is another origin, too."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None and site not in ("same-origin", "none"):
        return True
    return origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower()


def _is_local(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name is not None and is_loopback(name)
