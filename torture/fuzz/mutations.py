"""Ways to spoil a request. Each takes one that is in order, and may leave it so by chance."""

import gzip
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from torture.fuzz.requests import Header, Request

Mutation = Callable[[Random, Request], Request]
Path = tuple[Any, ...]

NUMBERS = [0, -1, 1, 2, 7, 8, 9, 20, 21, 256, 257, 1000, 1001, 4096, 4097, 2**31 - 1, 2**31, 2**53 + 1]
NUMBERS += [2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400, 0.0, -0.0, 0.5, 1.0, 1.5, 1e-320, 1e308]
NUMBERS += [math.nan, math.inf, -math.inf]
TEXTS = [
    "",
    " ",
    "\n",
    "\x00",
    "a\x00b",
    "\x1f",
    "\x7f",
    "\ud800",
    "\udfff\ud800",
    "\ufeff",
    "\u202e",
    "𝒳𝒴",
    "ß" * 99,
]
TEXTS += [
    "x" * 200,
    "x" * 201,
    "x" * 4001,
    "word " * 3000,
    "null",
    "true",
    "1",
    "../../etc/passwd",
    "%00",
    "'; --",
]
TEXTS += [
    "2030-01-01",
    "9999-12-31T23:59:59Z",
    "0000-00-00T00:00:00Z",
    "2030-01-01T00:00:00+99:99",
    "<s></s><eos>",
]
ODD: Sequence[Any] = [None, True, False, [], {}, [[]], [None], {"": ""}, *NUMBERS, *TEXTS]
DEPTHS = [10, 100, 200, 400, 900, 990, 1000, 5000, 100_000]


def wrong_value(draw: Random, request: Request) -> Request:
    """Something odd somewhere in the body."""
    document = request.document()
    place = draw.choice(list(_places(document)))
    return request.saying(_with(document, place, draw.choice(ODD)), escaped=draw.random() < 0.5)


def missing_or_unknown(draw: Random, request: Request) -> Request:
    """A field less, or one more."""
    document = request.document()
    if draw.random() < 0.5:
        return request.saying({**document, draw.choice(["x", "", "Prompt", "__proto__", "é", "\ud800"]): 1})
    return request.saying({k: v for k, v in document.items() if k != draw.choice(list(document))})


def limits(draw: Random, request: Request) -> Request:
    """A number beside itself, a list or text made long."""
    document = request.document()
    places = [place for place in _places(document) if place]
    place = draw.choice(places)
    value = _at(document, place)
    if isinstance(value, bool | None):
        value = [value] * draw.choice([0, 1, 300])
    elif isinstance(value, int | float):
        value = value + draw.choice([-1, 1, -0.5, 2**32])
    elif isinstance(value, str | list):
        value = value * draw.choice([0, 2, 8, 9, 33, 65, 101, 257, 1025])
    else:
        value = {f"{number}": number for number in range(draw.choice([0, 16, 17, 5000]))}
    return request.saying(_with(document, place, value))


def nested(draw: Random, request: Request) -> Request:
    """Deeper than anybody needs, as text: Python could not write it."""
    depth = draw.choice(DEPTHS)
    deep = "[" * depth + "]" * depth if draw.random() < 0.5 else '{"a":' * depth + "1" + "}" * depth
    text = json.dumps(_with(request.document(), draw.choice(list(_places(request.document()))), "@@@"))
    return replace(request, body=text.replace('"@@@"', deep).encode())


def no_json(draw: Random, request: Request) -> Request:
    """Almost JSON."""
    body = request.body or b""
    spoilt = [
        b"",
        b" ",
        b"null",
        b"0",
        b'"text"',
        b"[]",
        b"[" + body + b"]",
        b"\xef\xbb\xbf" + body,
        body.decode().encode("utf-16"),
        body.decode().encode("utf-32-le"),
        body[: draw.randrange(len(body) + 1)],
        body + draw.choice([b",", b"}", b"\x00", body, b"// x"]),
        body.replace(b'"', b"'"),
        body.replace(b":", b": NaN, ", 1),
        body.replace(b'": ', b'": 1, "prompt": ', 1),
        body.replace(b"}", b",}"),
        body.replace(b" 2", b" " + b"9" * 5000, 1),
        body.replace(b"e", b"\\u00", 1),
        body.replace(b"o", b"\\ud800", 1),
        b"prompt=x&max_new_tokens=1",
        gzip.compress(body),
    ]
    return replace(request, body=draw.choice(spoilt))


def bytes_flipped(draw: Random, request: Request) -> Request:
    """Some bytes of the body are others, often no UTF-8."""
    body = bytearray(request.body or b"")
    for _ in range(draw.randint(1, 4)):
        body[draw.randrange(len(body))] = draw.choice([0, 0x0A, 0x22, 0x5C, 0x7F, 0x80, 0xC0, 0xED, 0xFF])
    return replace(request, body=bytes(body))


def content_type(draw: Random, request: Request) -> Request:
    """Another kind of body than it says."""
    kinds = [b"", b"text/plain", b"application/xml", b"application/json; charset=utf-16", b"APPLICATION/JSON"]
    kinds += [
        b"application/vnd.api+json",
        b"multipart/form-data",
        b"multipart/form-data; boundary=x",
        b"json",
    ]
    kinds += [b"application/x-www-form-urlencoded", b"application/json, text/plain", b"\xff", b"a/b;" * 200]
    others = [header for header in request.headers if header[0] != b"Content-Type"]
    given = [(b"Content-Type", kind) for kind in draw.choices(kinds, k=draw.choice([0, 1, 1, 1, 2]))]
    return replace(request, headers=[*others, *given])


_VALUES = [
    b"",
    b" ",
    b"0",
    b"-1",
    b"*",
    b'"0"',
    b'W/"0"',
    b'"0", "1"',
    b'"' + b"9" * 18 + b'"',
    b'"' + b"9" * 19 + b'"',
]
_VALUES += [
    b"\xff\xfe",
    b"a b",
    b"k" * 255,
    b"k" * 256,
    b"k" * 9000,
    b"respond-async",
    b"respond-async;wait=-1,,;",
]
_VALUES += [
    b"bytes=0-",
    b"text/html;q=0",
    b"gzip, br",
    b"Thu, 99 Foo 2020",
    b"%00",
    b"1e9",
    b"'; drop",
    b"\t\t",
    b"{}",
]
_NAMES = [
    b"If-Match",
    b"If-None-Match",
    b"Idempotency-Key",
    b"Last-Event-ID",
    b"Prefer",
    b"X-Request-ID",
    b"Accept",
]
_NAMES += [
    b"traceparent",
    b"Accept-Encoding",
    b"Content-Encoding",
    b"Range",
    b"Cookie",
    b"Origin",
    b"Forwarded",
]
_NAMES += [b"X-Forwarded-For", b"X-HTTP-Method-Override", b"Upgrade", b"Content-Language", b"x" * 300]


def headers(draw: Random, request: Request) -> Request:
    """Odd values of headers, some of them twice."""
    added: list[Header] = []
    for name in draw.sample(_NAMES, draw.randint(1, 3)):
        added += [(name, draw.choice(_VALUES)) for _ in range(draw.choice([1, 1, 2]))]
    kept = [header for header in request.headers if draw.random() < 0.97]
    return replace(request, headers=[*kept, *added])


def credentials(draw: Random, request: Request) -> Request:
    """A key that is none."""
    values = [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer x",
        b"Basic eDp4",
        b"bearer npt_",
        b"Bearer \xff",
        b"Bearer " + b"x" * 9000,
    ]
    return request.with_headers((b"Authorization", draw.choice(values)))


def path(draw: Random, request: Request) -> Request:
    """Tricks with the address."""
    target, mark, query = request.target.partition(b"?")
    odd = [
        b"%2e%2e",
        b"..%2f..%2fledger.db",
        b"%00",
        b"%",
        b"%zz",
        b"%ff",
        b"%F0%9D%92%B3",
        b"a" * 64,
        b"a" * 65,
    ]
    odd += [
        b"a" * 3000,
        b"-1",
        b"1e3",
        b"0x1",
        b"00",
        b"9" * 19,
        b"9" * 400,
        b"%2f",
        b"%0d%0aX:%20y",
        b"%E2%80%AE",
    ]
    odd += [b";x=1", b"{fact_id}", b"'", b"*", b"1.0", b"9223372036854775807", b"9223372036854775808"]
    parts = target.split(b"/")
    place = draw.randrange(1, len(parts))
    match draw.randrange(5):
        case 0:
            parts.insert(place, draw.choice(odd))
        case 1:
            parts[place] += draw.choice(odd)
        case 2:
            parts.insert(place, b"")
        case 3:
            parts.append(b"")
        case _:
            parts[place] = draw.choice(odd)
    return replace(request, target=b"/".join(parts) + mark + query)


def query(draw: Random, request: Request) -> Request:
    """Tricks with what comes behind the question mark."""
    names = [b"limit", b"cursor", b"state", b"q", b"weights_version", b"format", b"x", b"", b"limit%00"]
    values = [
        b"",
        b"0",
        b"-1",
        b"1",
        b"1001",
        b"1.0",
        b"9" * 30,
        b"%00",
        b"%ff",
        b"null",
        b"true",
        b"x" * 999,
        b"x" * 5000,
    ]
    values += [
        b"MTo",
        b"OTIyMzM3MjAzNjg1NDc3NTgwODo",
        b"=",
        b"%20",
        b"published",
        b"peft",
        b"merged",
        b"%F0%9D%92%B3",
    ]
    pairs = [draw.choice(names) + b"=" + draw.choice(values) for _ in range(draw.randint(1, 3))]
    return replace(request, target=request.target.partition(b"?")[0] + b"?" + b"&".join(pairs))


def method(draw: Random, request: Request) -> Request:
    """Another method."""
    others = [
        b"GET",
        b"HEAD",
        b"POST",
        b"PUT",
        b"PATCH",
        b"DELETE",
        b"OPTIONS",
        b"TRACE",
        b"FOO",
        b"get",
        b"PROPFIND",
    ]
    return replace(request, method=draw.choice([each for each in others if each != request.method]))


OF_BODIES: Sequence[Mutation] = (
    wrong_value,
    wrong_value,
    missing_or_unknown,
    limits,
    nested,
    no_json,
    bytes_flipped,
    content_type,
)
OF_ALL: Sequence[Mutation] = (headers, credentials, path, query, method)


def spoilt(draw: Random, request: Request) -> Request:
    """The request, spoilt in one way, sometimes in two."""
    mutation = draw.choice(OF_BODIES if request.body and draw.random() < 0.75 else OF_ALL)
    request = mutation(draw, request)
    return draw.choice(OF_ALL)(draw, request) if draw.random() < 0.1 else request


def _places(document: Any, at: Path = ()) -> Iterator[Path]:
    yield at
    if isinstance(document, dict):
        for name, value in document.items():
            yield from _places(value, (*at, name))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from _places(value, (*at, index))


def _at(document: Any, place: Path) -> Any:
    for step in place:
        document = document[step]
    return document


def _with(document: Any, place: Path, value: Any) -> Any:
    if not place:
        return value
    first, *rest = place
    changed = document.copy()
    changed[first] = _with(document[first], tuple(rest), value)
    return changed
