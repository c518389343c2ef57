"""HTTP/1.1 as uvicorn reads it, but what is none is answered with a problem, too."""

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
    """One connection."""

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
