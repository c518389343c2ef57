"""The hash chain: a version's hash covers its parent's, so history cannot change unnoticed."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from service.ledger.records import AuditEntry, Fact, Version


def canonical(value: Any, allow_nan: bool = True) -> str:
    """One text for one JSON value, whatever the order of its keys.

    Raises:
        ValueError: a number that is not finite, unless `allow_nan`.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=allow_nan)


def digest(value: Any) -> str:
    """SHA-256 of the canonical text, in hex."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def fact_digest(fact: Fact) -> str:
    """Covers everything a fact's row holds, its blob by name."""
    return digest(
        {
            "id": fact.id,
            "version": fact.version,
            "request": fact.request,
            "report": fact.report,
            "blob": fact.blob,
            "created_at": fact.created_at,
            "expires_at": fact.expires_at,
        }
    )


def audit_hash(parent: str | None, entry: AuditEntry) -> str:
    """The hash of `entry` (whose own `chain` is ignored) after `parent`'s."""
    return digest(
        {
            "parent": parent,
            "seq": entry.seq,
            "at": entry.at,
            "actor": entry.actor,
            "action": entry.action,
            "target": entry.target,
            "detail": entry.detail,
        }
    )


def chain_hash(parent: str | None, version: Version, facts: Mapping[str, Fact]) -> str:
    """The hash of `version` (whose own `chain` is ignored) after `parent`'s.

    Raises:
        KeyError: `facts` lacks one that is born here.
    """
    return digest(
        {
            "parent": parent,
            "version": version.version,
            "kind": version.kind,
            "base": version.base,
            "target": version.target,
            "fold": version.fold,
            "created_at": version.created_at,
            "births": _digests(version.births, facts),
            "deaths": sorted(version.deaths),
        }
    )


def _digests(ids: Iterable[str], facts: Mapping[str, Fact]) -> list[str]:
    return [fact_digest(facts[fact_id]) for fact_id in sorted(ids)]
