"""Blobs that nothing needs any more."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from service.blobs import Blobs
from service.ledger import Ledger

GRACE = timedelta(hours=1)
"""A blob is stored before the ledger names it, and a replica may lag behind a snapshot: younger ones are
left alone."""
DELETED_AT_ONCE = 50
"""As long as these are deleted, writers wait."""


@dataclass(frozen=True, slots=True)
class Collected:
    """Blobs that were there, and those of them that were (or would be) deleted."""

    found: int
    deleted: tuple[str, ...]


def collect(
    ledger: Ledger, blobs: Blobs, grace: timedelta = GRACE, now: datetime | None = None, dry_run: bool = False
) -> Collected:
    """Delete blobs that no version needs which can still be reached, if they are older than `grace`.

    Raises:
        LedgerError, BlobError, StorageError: what was deleted until then was garbage.
    """
    # What is stored is listed first: what is stored later is not looked at.
    stored = list(blobs)
    needed = ledger.blobs()
    latest = (now or datetime.now(UTC)) - grace
    garbage = sorted(blob.name for blob in stored if blob.name not in needed and blob.modified < latest)
    if dry_run:
        return Collected(len(stored), tuple(garbage))
    parts = (garbage[at : at + DELETED_AT_ONCE] for at in range(0, len(garbage), DELETED_AT_ONCE))
    return Collected(len(stored), tuple(name for part in parts for name in _delete(ledger, blobs, part)))


def _delete(ledger: Ledger, blobs: Blobs, names: Sequence[str]) -> list[str]:
    """Those of `names` that were deleted. A fact that came to need one meanwhile is committed before, and
    so seen here, or afterwards, and then stores it again.
    """
    with ledger.without_commits() as needed:
        garbage = [name for name in names if name not in needed]
        for name in garbage:
            blobs.delete(name)
    return garbage
