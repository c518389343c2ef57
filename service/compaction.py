"""Old versions become one snapshot: start-up reads it and what follows, and older blobs can go."""

from contextlib import closing

from service.blobs import Blobs
from service.ledger import SYSTEM, Ledger
from service.weights_codec import decode, encode_snapshot


class NothingToCompact(Exception):
    """There is no version that is old enough, or its snapshot is there."""


def compact(ledger: Ledger, blobs: Blobs, keep: int) -> int:
    """A snapshot of all facts that the version `keep` before the newest knows; that version.

    From the next start on older versions are gone. Weights stay, bit for bit, what they were.

    Raises:
        NothingToCompact: with the reason.
        LedgerError, BlobError, StorageError: nothing changed but for a blob that `collect` removes.
    """
    version = ledger.newest - keep
    if version < 1:
        raise NothingToCompact(f"the newest version is {ledger.newest}, and the last {keep} are kept")
    last = ledger.snapshot()
    if last is not None and last.version >= version:
        raise NothingToCompact(f"there is a snapshot of version {last.version}")
    facts = ledger.facts_by_id(ledger.live(version)).values()
    with closing(blobs.get_all([fact.blob for fact in facts])) as stored:
        data = encode_snapshot({fact.id: decode(each) for fact, each in zip(facts, stored, strict=True)})
    blob = blobs.put(data)

    def ensure() -> None:
        if blob not in blobs:
            blobs.put(data)

    ledger.add_snapshot(version, blob, SYSTEM, ensure)
    return version
