"""What the ledger keeps, as values."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class VersionKind(StrEnum):
    """What made a version."""

    BASE = "base"
    FACT = "fact"
    RETRACT = "retract"
    ROLLBACK = "rollback"


class FactState(StrEnum):
    """Whether the newest version knows a fact."""

    PUBLISHED = "published"
    RETRACTED = "retracted"


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact as it was written: its request, what was measured, and the blob of its weights."""

    id: str
    version: int
    request: Mapping[str, Any]
    report: Mapping[str, Any]
    blob: str
    created_at: str


@dataclass(frozen=True, slots=True)
class StoredFact:
    """A fact and what became of it; `died` is the version that retracted it."""

    fact: Fact
    state: FactState
    died: int | None


@dataclass(frozen=True, slots=True)
class Version:
    """One step of history: the facts born and dead in it, chained to its parent by `chain`.

    `base` names the weights that a base version starts from, `target` the version that a
    rollback returned to.
    """

    version: int
    parent: int | None
    kind: VersionKind
    births: tuple[str, ...]
    deaths: tuple[str, ...]
    base: str | None
    target: int | None
    created_at: str
    chain: str


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A key a client gave, and a digest of the body it came with."""

    key: str
    digest: str


@dataclass(frozen=True, slots=True)
class Change:
    """A version to be: facts that are born (by id; `new_fact` is one of them) and that die."""

    parent: int
    kind: VersionKind
    births: tuple[str, ...] = ()
    deaths: tuple[str, ...] = ()
    new_fact: Fact | None = None
    target: int | None = None
    key: IdempotencyKey | None = None
