"""Where a page ended, as an opaque text."""

import base64
import binascii
from typing import Annotated

from fastapi import Query

from service.commands import InvalidField
from service.ledger import MAX_VERSION, Position

MAX_PAGE = 1000
PageSize = Annotated[int, Query(ge=1, le=MAX_PAGE, description="entries to a page")]
Cursor = Annotated[
    str | None, Query(max_length=200, description="`next_cursor` of the page before; absent: the first page")
]

NewestFirst = Annotated[bool, Query(description="backwards; a cursor goes on in the order that gave it")]

ID = r"^[A-Za-z0-9_-]+$"
"""Of facts and operations; databases do not take every character."""

_FOREIGN = "is not one that this server gave"


def encode_cursor(position: Position) -> str:
    """Text for a query parameter."""
    text = f"{position.version}:{position.id}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> Position:
    """The inverse. Raises `InvalidField` for what `encode_cursor` did not write."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        version, _, fact_id = base64.urlsafe_b64decode(padded).decode().partition(":")
        position = Position(int(version), fact_id)
    except (binascii.Error, ValueError) as error:
        raise InvalidField("cursor", _FOREIGN) from error
    if not 0 <= position.version <= MAX_VERSION or "\0" in position.id:
        raise InvalidField("cursor", _FOREIGN)
    return position
