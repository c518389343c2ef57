"""Requests as bytes, well framed or not, and the answers to them."""

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from torture.fuzz.requests import Header, Request

TIMEOUT_S = 60.0
_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Sent:
    """Bytes, and whether they are enough for an answer. Where not, no more come."""

    data: bytes
    due: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, its body put together again."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def framed(request: Request, *more: Header, version: bytes = b"HTTP/1.1", length: bool = True) -> bytes:
    """A request as it should be sent; the connection ends with its answer."""
    lines = [
        b"%s %s %s" % (request.method, request.target, version),
        b"Host: localhost",
        b"Connection: close",
    ]
    lines += [b"%s: %s" % header for header in (*request.headers, *more)]
    if length and request.body is not None:
        lines.append(b"Content-Length: %d" % len(request.body))
    return b"\r\n".join(lines) + _END + (request.body or b"")


def sound(draw: Random, request: Request) -> Sent:
    """The framing is in order, whatever else is not."""
    return Sent(framed(request))


def absurd_length(draw: Random, request: Request) -> Sent:
    """A Content-Length that is none, or not that of the body."""
    body = request.body or b""
    wrong = [
        b"-1",
        b"abc",
        b"+5",
        b"0x10",
        b"1e3",
        b"",
        b"9" * 19,
        b"9" * 400,
        b"%d, %d" % (len(body), len(body)),
    ]
    value = draw.choice([*wrong, b"%d" % (len(body) + 7), b"%d" % (2 * 1024 * 1024)])
    return Sent(framed(request, (b"Content-Length", value), length=draw.random() < 0.5), due=False)


def chunked(draw: Random, request: Request) -> Sent:
    """Chunks, some of them of a size that is none."""
    body = request.body or b"{}"
    sizes = [
        b"%x" % len(body),
        b"0%X" % len(body),
        b"%x;x=y" % len(body),
        b"%x" % (len(body) + 1),
        b"zz",
        b"-1",
    ]
    sizes += [
        b"F" * 16,
        b"F" * 40,
        b"",
        b" %x" % len(body),
        b"%x" % max(len(body) - 1, 0),
        b"%x;%s" % (len(body), b"x" * 70000),
    ]
    number = draw.randrange(len(sizes))
    end = draw.choice([b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\nTrailer: x\r\n\r\n", b"", b"0", b"0\n\n"])
    sound_end = end.endswith(_END) and number < 3
    both = [(b"Content-Length", b"3")] if draw.random() < 0.1 else []
    head = framed(request, (b"Transfer-Encoding", b"chunked"), *both, length=False).partition(_END)[0] + _END
    return Sent(head + sizes[number] + b"\r\n" + body + b"\r\n" + end, due=sound_end and not both)


def coding(draw: Random, request: Request) -> Sent:
    """A transfer coding that nobody knows."""
    names = [b"gzip", b"gzip, chunked", b"chunked, chunked", b"identity", b"xchunked", b"\x0bchunked", b""]
    return Sent(
        framed(request, (b"Transfer-Encoding", draw.choice(names)), length=draw.random() < 0.5), due=False
    )


def truncated(draw: Random, request: Request) -> Sent:
    """The client leaves in the middle."""
    whole = framed(request)
    return Sent(whole[: draw.randrange(len(whole))], due=False)


def odd_head(draw: Random, request: Request) -> Sent:
    """A head that is no head of HTTP/1.1, or a strange one."""
    whole = framed(request)
    rest = whole.partition(b"\r\n")[2]
    long = b"X-Long: " + b"x" * draw.choice([9000, 70_000, 200_000])
    heads = [
        whole.replace(b"Host: localhost\r\n", b"", 1),
        whole.replace(b"Host: localhost", b"Host: localhost\r\nHost: evil.example", 1),
        whole.replace(
            b"Host: localhost", b"Host: " + draw.choice([b"", b"a b", b"[::1", b"\xff", b"x" * 300]), 1
        ),
        whole.replace(b"\r\n", b"\n"),
        whole.replace(b"\r\n", b"\r", 2),
        whole.replace(b"Host: localhost", b"Host: localhost\r\n folded: yes", 1),
        whole.replace(b"Host: localhost", b"Host: localhost\r\nX\x00Y: 1", 1),
        whole.replace(b"Host: localhost", b"Host: localhost\r\nX-Null: a\x00b", 1),
        whole.replace(b"Host: localhost", b"Host: localhost\r\nno colon", 1),
        whole.replace(b"Host: localhost", b"Host : localhost", 1),
        whole.replace(b"Host: localhost", b"Host: localhost\r\n" + long, 1),
        whole.replace(
            b"Host: localhost", b"Host: localhost\r\n" + b"X: y\r\n" * draw.choice([200, 20_000]), 1
        ),
        whole.replace(b"Host: localhost", b"Host: localhost\r\nExpect: 100-continue", 1),
        whole.replace(b"Host: localhost", b"Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade", 1),
        framed(
            request,
            version=draw.choice([b"HTTP/1.0", b"HTTP/0.9", b"HTTP/2.0", b"HTTP/1.2", b"http/1.1", b"X", b""]),
        ),
        request.method + b" " + request.target + b"\r\n\r\n",
        request.method + b"  " + request.target + b" HTTP/1.1\r\n" + rest,
        request.method + b" http://localhost" + request.target + b" HTTP/1.1\r\n" + rest,
        request.method
        + b" "
        + draw.choice([b"*", b"localhost:80", b"\xff", b"/a b", b"", b"//", b"/?"])
        + b" HTTP/1.1\r\n"
        + rest,
        b"OPTIONS * HTTP/1.1\r\n" + rest,
        b"\r\n\r\n" + whole,
    ]
    return Sent(draw.choice(heads), due=False)


def noise(draw: Random, request: Request) -> Sent:
    """No HTTP at all."""
    other = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"EHLO x\r\n",
        b"\x00" * 99,
    ]
    return Sent(draw.choice([*other, draw.randbytes(300), b"\r\n" * 300, b"x" * 200_000]), due=False)


def pipelined(draw: Random, request: Request) -> Sent:
    """Another request before the answer came."""
    first = framed(request).replace(b"Connection: close", b"Connection: keep-alive", 1)
    return Sent(first + framed(request))


Framing = Callable[[Random, Request], Sent]
FRAMINGS: Sequence[Framing] = (absurd_length, chunked, coding, truncated, odd_head, noise, pipelined)


def ask(port: int, sent: Sent) -> Answer | None:
    """The first answer, if any came. Raises TimeoutError where one is due and none comes."""
    received = bytearray()
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
        try:
            connection.sendall(sent.data)
            if not sent.due:
                connection.shutdown(socket.SHUT_WR)
            while block := connection.recv(1 << 16):
                received += block
        except TimeoutError:
            raise
        except OSError:
            pass  # refused before all of it was read
    return read(bytes(received))


def read(data: bytes) -> Answer | None:
    """The first final answer in what came."""
    head, mark, rest = data.partition(_END)
    if not mark:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    status = int(first.split(" ")[1])
    if status < 200:
        return read(rest)
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    return Answer(status, headers, _body(headers, rest))


def _body(headers: Mapping[str, str], rest: bytes) -> bytes:
    if headers.get("transfer-encoding") == "chunked":
        return b"".join(_chunks(rest))
    return rest[: int(headers["content-length"])] if "content-length" in headers else rest


def _chunks(rest: bytes) -> list[bytes]:
    found = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size or b"0", 16)
        if not length:
            break
        found.append(rest[:length])
        rest = rest[length + 2 :]
    return found
