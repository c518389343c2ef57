"""Blobs that nothing needs any more."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from service.blobs import Blobs
from service.ledger import Ledger

GRACE = timedelta(hours=1)
"""A blob is stored before the ledger names it, and a replica may lag behind a snapshot: younger ones are
left alone."""


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
    garbage = tuple(
        sorted(blob.name for blob in stored if blob.name not in needed and blob.modified < latest)
    )
    if not dry_run:
        for name in garbage:
            blobs.delete(name)
    return Collected(len(stored), garbage)
