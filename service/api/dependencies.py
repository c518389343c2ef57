"""What endpoints ask for."""

import re
from typing import Annotated, Any, cast

from fastapi import Depends, Header, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import WithJsonSchema

from service.access import ScopeMissing
from service.host import Host
from service.ledger import ANONYMOUS
from service.ledger.api_keys import ApiKey, Scope
from service.request_errors import MalformedHeader

_VERSION = re.compile(r'"([0-9]{1,18})"')
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def get_host(request: Request) -> Host:
    """The host that this application serves."""
    return cast(Host, request.app.state.host)


def if_match(
    value: Annotated[
        str | None,
        Header(
            alias="If-Match",
            description="Write only if this is the newest version; `*`: whichever it is",
            examples=['"0"'],
            json_schema_extra={"pattern": rf"^(\*|{_VERSION.pattern})$", "minLength": 1},
        ),
    ] = None,
) -> int | None:
    """The version a write builds on. Raises `MalformedHeader` unless it is a quoted number."""
    if value is None or value == "*":
        return None
    found = _VERSION.fullmatch(value)
    if found is None:
        raise MalformedHeader("If-Match", 'must be a quoted version such as "7"')
    return int(found[1])


def idempotency_key(
    value: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description="A repeated request with the same key and body is answered as the first; a dry run, "
            "which writes nothing, is made anew",
            json_schema_extra={"pattern": f"^{_KEY.pattern}$"},
        ),
    ] = None,
) -> str | None:
    """The client's key. Raises `MalformedHeader` unless it is 1 to 255 visible characters."""
    if value is not None and not _KEY.fullmatch(value):
        raise MalformedHeader("Idempotency-Key", "must be 1 to 255 visible ASCII characters")
    return value


def prefers_async(
    value: Annotated[
        list[str] | None,
        WithJsonSchema({"type": "string"}),  # a list in one line, as RFC 9110 has it; more lines are taken
        Header(
            alias="Prefer",
            description="`respond-async`: answer at once with an operation to poll",
            examples=["respond-async"],
        ),
    ] = None,
) -> bool:
    """Whether the client would rather not wait (RFC 7240); other preferences are not ours to honour."""
    wishes = (wish for line in value or () for wish in line.split(","))
    return any(wish.split(";")[0].strip().lower() == "respond-async" for wish in wishes)


def actor(request: Request) -> str:
    """Who asks: the id of the API key, or anonymous on a server without keys."""
    return cast(str, request.scope.get("state", {}).get("actor", ANONYMOUS))


_BEARER = HTTPBearer(auto_error=False, description="an API key; see `npt keys`")


def needs(read: Scope, write: Scope) -> Any:
    """A dependency of endpoints: a key needs one scope to read (GET), another to write.

    Raises `ScopeMissing`; a server without keys asks for none.
    """

    def check(
        request: Request, _shown: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
    ) -> None:
        key, scope = request.scope.get("state", {}).get("key"), read if request.method == "GET" else write
        if key is not None and not key.allows(scope):
            raise ScopeMissing(scope)

    return Depends(check)


def shown_key(
    request: Request, _shown: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
) -> ApiKey | None:
    """The key that the request came with, which is valid; `None` on a server without keys."""
    return cast(ApiKey | None, request.scope.get("state", {}).get("key"))


def tell_replay(replayed: bool, response: Response) -> None:
    """Say that an answer is one of before."""
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"


HostDep = Annotated[Host, Depends(get_host)]
IfMatch = Annotated[int | None, Depends(if_match)]
Key = Annotated[str | None, Depends(idempotency_key)]
Actor = Annotated[str, Depends(actor)]
PrefersAsync = Annotated[bool, Depends(prefers_async)]
ShownKey = Annotated[ApiKey | None, Depends(shown_key)]
