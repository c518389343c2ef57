"""Rows to values and back."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import RowMapping

from service.ledger.chain import canonical
from service.ledger.records import AuditEntry, Change, Fact, FactState, StoredFact, Version, VersionKind

Row = RowMapping | Mapping[str, Any]


def fact_row(fact: Fact) -> dict[str, Any]:
    """A row of `facts`."""
    return {
        "id": fact.id,
        "version": fact.version,
        "request": canonical(fact.request),
        "report": canonical(fact.report),
        "blob": fact.blob,
        "created_at": fact.created_at,
        "expires_at": fact.expires_at,
    }


def read_fact(row: Row) -> Fact:
    """A fact from its row. Raises `ValueError` where its JSON is broken."""
    return Fact(
        row["id"],
        row["version"],
        json.loads(row["request"]),
        json.loads(row["report"]),
        row["blob"],
        row["created_at"],
        row["expires_at"],
    )


def read_stored_fact(row: Row) -> StoredFact:
    """A fact from its row joined with `alive` and `last`, the sum and newest of its changes."""
    alive = row["alive"] == 1
    state = FactState.PUBLISHED if alive else FactState.RETRACTED
    return StoredFact(read_fact(row), state, None if alive else row["last"])


def version_row(version: Version) -> dict[str, Any]:
    """A row of `versions`."""
    return {
        "version": version.version,
        "parent": version.parent,
        "kind": str(version.kind),
        "base": version.base,
        "target": version.target,
        "fold": version.fold,
        "created_at": version.created_at,
        "chain": version.chain,
    }


def change_rows(version: Version) -> list[dict[str, Any]]:
    """The rows of `changes` of one version."""
    signs = [(fact_id, 1) for fact_id in version.births]
    signs += [(fact_id, -1) for fact_id in version.deaths]
    return [{"version": version.version, "fact_id": fact, "delta": delta} for fact, delta in signs]


def read_version(row: Row, changes: Iterable[Row]) -> Version:
    """A version from its row and its changes. Raises `ValueError` for an unknown kind."""
    mine = sorted((change["fact_id"], change["delta"]) for change in changes)
    return Version(
        row["version"],
        row["parent"],
        VersionKind(row["kind"]),
        tuple(fact_id for fact_id, delta in mine if delta == 1),
        tuple(fact_id for fact_id, delta in mine if delta == -1),
        row["base"],
        row["target"],
        row["created_at"],
        row["chain"],
        row["fold"],
    )


def key_row(change: Change, version: Version) -> dict[str, Any]:
    """A row of `idempotency`, for a change that has a key."""
    if change.key is None:
        raise ValueError("the change has no key")
    return {
        "actor": change.actor,
        "key": change.key.key,
        "digest": change.key.digest,
        "version": version.version,
        "created_at": version.created_at,
    }


def audit_row(entry: AuditEntry) -> dict[str, Any]:
    """A row of `audit`."""
    return {
        "seq": entry.seq,
        "at": entry.at,
        "actor": entry.actor,
        "action": entry.action,
        "target": entry.target,
        "detail": canonical(entry.detail),
        "chain": entry.chain,
    }


def read_audit(row: Row) -> AuditEntry:
    """An entry from its row. Raises `ValueError` where its JSON is broken."""
    detail = json.loads(row["detail"])
    return AuditEntry(row["seq"], row["at"], row["actor"], row["action"], row["target"], detail, row["chain"])
