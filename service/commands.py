"""What a client may ask of the writer, and what it refuses.

WriteError
├── FactNotFound           no fact has this id
├── FactAlreadyRetracted   it is not known any more
├── UnknownVersion         no version has this number
├── StaleVersion           If-Match names a version that is not the newest
├── KeyConflict            the idempotency key was used for another body
├── KeyInFlight            a write with this key is under way
├── InvalidField           a value that this model cannot take
├── TooManyWrites          as many writes wait as may
└── ReadOnly               an earlier disk error: no writes until restart
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from npt_core.consolidation import WriteRequest
from service.ledger import Fact, IdempotencyKey, Version


class WriteError(Exception):
    """Base of what the writer refuses; nothing was written."""


class FactNotFound(WriteError):
    def __init__(self, fact_id: str) -> None:
        super().__init__(f"there is no fact {fact_id}")


class FactAlreadyRetracted(WriteError):
    def __init__(self, fact_id: str, version: int) -> None:
        super().__init__(f"fact {fact_id} is not known any more since version {version}")


class UnknownVersion(WriteError):
    def __init__(self, version: int, newest: int) -> None:
        super().__init__(f"there is no version {version}, the newest is {newest}")


class StaleVersion(WriteError):
    def __init__(self, expected: int, newest: int) -> None:
        super().__init__(f"If-Match names version {expected}, the newest is {newest}")


class KeyConflict(WriteError):
    def __init__(self) -> None:
        super().__init__("this Idempotency-Key was used with another body")


class KeyInFlight(WriteError):
    def __init__(self) -> None:
        super().__init__("a write with this Idempotency-Key is under way")


class InvalidField(WriteError):
    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field} {reason}")
        self.field = field
        self.reason = reason


class TooManyWrites(WriteError):
    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} writes are under way or waiting")


class ReadOnly(WriteError):
    def __init__(self, cause: str) -> None:
        super().__init__(f"no writes until restart: {cause}")


@dataclass(frozen=True, slots=True)
class AddFact:
    """Write a fact. `document` is the request as the ledger keeps it."""

    request: WriteRequest
    document: Mapping[str, Any]
    key: IdempotencyKey | None = None
    if_match: int | None = None


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What a dry run measured; nothing was written."""

    weights_version: int
    report: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Added:
    """A fact that is written; `replayed` if an earlier request with its key wrote it."""

    fact: Fact
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Moved:
    """A version that a retraction or a rollback made."""

    version: Version
