"""Entries of the audit."""

from typing import Any

from pydantic import Field

from service.ledger import AuditEntry
from service.schemas.common import Out


class AuditOut(Out):
    """Something that was done."""

    seq: int
    at: str
    actor: str = Field(description="id of the API key; anonymous, system or cli")
    action: str = Field(examples=["fact", "retract", "rollback", "key.create"])
    target: str = Field(examples=["versions/7"])
    detail: dict[str, Any]
    chain: str = Field(description="hash over this entry and all before it")

    @classmethod
    def of(cls, entry: AuditEntry) -> "AuditOut":
        """From what the ledger keeps."""
        return cls(
            seq=entry.seq,
            at=entry.at,
            actor=entry.actor,
            action=entry.action,
            target=entry.target,
            detail=dict(entry.detail),
            chain=entry.chain,
        )
