"""What the ledger keeps, as values."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

MAX_VERSION = 2**31 - 1
"""The largest INTEGER of PostgreSQL: ten years at six versions a second."""
SAME_FOLD = ""
"""What was folded stays as it was."""
ANONYMOUS = "anonymous"
"""Whoever asks a server that has no keys."""
SYSTEM = "system"
"""What the service does by itself."""


class VersionKind(StrEnum):
    """What made a version."""

    BASE = "base"
    FACT = "fact"
    RETRACT = "retract"
    ROLLBACK = "rollback"
    FOLD = "fold"


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
    expires_at: str | None = None


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
    rollback returned to, `fold` the blob of what is folded into the base weights.
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
    fold: str | None = None


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A key a client gave, and a digest of the body it came with. Each actor has keys of its own."""

    key: str
    digest: str


@dataclass(frozen=True, slots=True)
class Change:
    """A version to be: facts that are born (by id; `new_facts` are some of them) and that die.

    `actor` is who asked for it. `fold` is the blob of the fold in force from now on, `None` without.
    """

    parent: int
    kind: VersionKind
    births: tuple[str, ...] = ()
    deaths: tuple[str, ...] = ()
    new_facts: tuple[Fact, ...] = ()
    target: int | None = None
    key: IdempotencyKey | None = None
    actor: str = ANONYMOUS
    fold: str | None = SAME_FOLD


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All facts that a version knows, in one blob; versions before it are gone."""

    version: int
    blob: str
    chain: str
    created_at: str


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who did what to what, chained to the entry before by `chain`."""

    seq: int
    at: str
    actor: str
    action: str
    target: str
    detail: Mapping[str, Any]
    chain: str
