"""The last resort: an error that nothing else answers is logged, and told as a problem."""

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import problems

log = structlog.get_logger(__name__)


class Failures:
    """Answers 500 where an error came before the answer began; afterwards only the log knows."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if scope["type"] != "http" or started:
                raise
            log.exception("request failed")
            await problems.respond(Request(scope), problems.problem_of(error))(scope, receive, send)
