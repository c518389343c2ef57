"""HTTP/1.1 as uvicorn reads it, but what is none is answered with a problem, too, and not waited for."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from service import problems

PROBLEM = problems.for_status(400, "not HTTP/1.1").model_dump_json(exclude_none=True).encode()
HEADERS = [
    ("Content-Type", problems.MEDIA_TYPE),
    ("Content-Length", str(len(PROBLEM))),
    ("Connection", "close"),
]


class Protocol(H11Protocol):
    """One connection. It is closed when no whole head of a request came for `head_timeout_s`: uvicorn itself
    waits for ever, which costs it a connection for each client that sends half a head.
    """

    head_timeout_s = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._expect_head()
        else:
            self._head_came()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(self.head_timeout_s, self.transport.close)

    def _head_came(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def send_400_response(self, msg: str) -> None:
        """Where the body of a request turns out to be none, its answer has no client."""
        cycle: RequestResponseCycle | None = self.cycle  # of the last request, if there was one
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()
        under_way = self.conn.our_state is h11.SEND_RESPONSE
        if under_way or self.conn.our_state is h11.IDLE:
            self._say(h11.Response(status_code=400, headers=HEADERS))
            if not (under_way and self.scope["method"] == "HEAD"):
                self._say(h11.Data(data=PROBLEM))
            self._say(h11.EndOfMessage())
        self.transport.close()

    def _say(self, event: h11.Event) -> None:
        self.transport.write(self.conn.send(event) or b"")


def with_head_timeout(seconds: float) -> type[Protocol]:
    """A `Protocol` that waits so long."""
    return type("Protocol", (Protocol,), {"head_timeout_s": seconds})
