"""What a client may ask of the writer, and what it refuses.

WriteError
├── FactNotFound           no fact has this id
├── FactAlreadyRetracted   it is not known any more
├── UnknownVersion         no version has this number
├── StaleVersion           If-Match names a version that is not the newest
├── Contradiction          a stored fact, or one of the same batch, says otherwise
├── RefusedInBatch         some facts of a batch were refused, so none was written
├── KeyConflict            the idempotency key was used for another body
├── KeyInFlight            a write with this key is under way
├── InvalidField           a value that this model cannot take
├── Cancelled              whoever asked for the write wants it no more
├── TooManyWrites          as many writes wait as may
├── Contended              other replicas were always quicker
├── NotExportable          a format cannot express what a version holds
├── OperationNotFound      no operation has this id
├── OperationEnded         it is too late to cancel it
├── OperationElsewhere     another replica works on it
├── TooManyOperations      as many wait as may
├── Interrupted            the process that worked on it ended first
└── ReadOnly               an earlier disk error: no writes until restart
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from npt_core.consolidation import FoldBars, Step, WriteRequest
from service.ledger import ANONYMOUS, Fact, IdempotencyKey, Version


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


class Contradiction(WriteError):
    """`conflicts` are the ids of the stored facts that say otherwise."""

    def __init__(self, conflicts: Sequence[str]) -> None:
        super().__init__(f"another answer to the same question is stored: {', '.join(conflicts)}")
        self.conflicts = tuple(conflicts)


class SelfContradiction(WriteError):
    """Two facts of one batch answer one question differently."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"facts.{first} and facts.{second} answer the same question differently")


class RefusedInBatch(WriteError):
    """`refused` says for each refused fact of a batch, by its index, why."""

    def __init__(self, refused: Mapping[int, Exception]) -> None:
        first = min(refused)
        super().__init__(f"facts.{first}: {refused[first]}")
        self.refused = dict(refused)


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


class Cancelled(WriteError):
    def __init__(self) -> None:
        super().__init__("the write was cancelled")


class TooManyWrites(WriteError):
    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} writes are under way or waiting")


class Contended(WriteError):
    def __init__(self, attempts: int) -> None:
        super().__init__(f"other replicas published first, {attempts} times in a row")


class NotExportable(WriteError):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class OperationNotFound(WriteError):
    def __init__(self, operation_id: str) -> None:
        super().__init__(f"there is no operation {operation_id}")


class OperationEnded(WriteError):
    def __init__(self, operation_id: str, state: str) -> None:
        super().__init__(f"operation {operation_id} has {state} already")


class OperationElsewhere(WriteError):
    def __init__(self, operation_id: str) -> None:
        super().__init__(f"operation {operation_id} runs on another replica, which alone can end it")


class TooManyOperations(WriteError):
    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} operations wait")


class Interrupted(WriteError):
    def __init__(self) -> None:
        super().__init__("nothing was written: the server stopped before it was this operation's turn to end")


class ReadOnly(WriteError):
    def __init__(self, cause: str) -> None:
        super().__init__(f"no writes until restart: {cause}")


class OnConflict(StrEnum):
    """What becomes of a stored fact that says otherwise."""

    SUPERSEDE = "supersede"
    REJECT = "reject"
    ALLOW = "allow"


@dataclass(frozen=True, slots=True)
class NewFact:
    """One fact to write. `document` is the request as the ledger keeps it."""

    request: WriteRequest
    document: Mapping[str, Any]
    on_conflict: OnConflict = OnConflict.SUPERSEDE
    expires_at: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LongWrite:
    """A write that takes its time. Setting `cancelled` ends it, if it is not yet stored. `tell` hears of
    each step of a fact as it begins.
    """

    key: IdempotencyKey | None = None
    if_match: int | None = None
    actor: str = ANONYMOUS
    cancelled: threading.Event = field(default_factory=threading.Event)
    tell: Callable[[Step], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class AddFacts(LongWrite):
    """Write facts, all in one version or none."""

    facts: tuple[NewFact, ...]


@dataclass(frozen=True, slots=True)
class FoldFacts(LongWrite):
    """Write facts into the base weights, `None` for all, beside those that are there. What misses `bars`
    is refused.
    """

    facts: tuple[str, ...] | None
    bars: FoldBars


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What a dry run measured; nothing was written."""

    weights_version: int
    reports: tuple[Mapping[str, Any], ...]
    conflicts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Added:
    """Facts that are written, and those they superseded; `replayed` if an earlier request with the same
    key wrote them.
    """

    version: Version
    facts: tuple[Fact, ...]
    replayed: bool = False

    @property
    def superseded(self) -> tuple[str, ...]:
        """Ids of facts that died of it."""
        return self.version.deaths


@dataclass(frozen=True, slots=True)
class Folded:
    """A fold, or what one would do: then `version` is the newest, and nothing was written. What was measured
    is not kept: it is missing where an answer is repeated.
    """

    version: Version
    facts: tuple[str, ...]
    report: Mapping[str, Any] | None
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Moved:
    """A version that a retraction or a rollback made."""

    version: Version
