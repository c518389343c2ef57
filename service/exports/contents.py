"""What a version holds: its facts, their weights as stored, and what is folded."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from npt_core.bank import Fold
from npt_core.engine import VersionGone
from service.blobs import Blobs
from service.commands import UnknownVersion
from service.exports.safetensors_stream import Block, block_of
from service.ledger import Fact, Ledger, Version
from service.replica import Replica


@dataclass(frozen=True)
class Contents:
    """A version, read from ledger and blobs whatever the bank still keeps of it.

    `apart` are the facts that are not folded; `fold` is empty where nothing is.
    """

    version: Version
    apart: Sequence[Fact]
    inside: Sequence[Fact]
    fold: Fold
    blobs: Blobs
    base: str
    """Fingerprint of the checkpoint."""

    def blocks(self) -> list[Block]:
        """The weights of the facts that are not folded, as tensors `{fact}/{tensor}`. Every blob is read once
        now, so that a damaged one is told before anything is sent. Raises the `BlobError` tree.
        """
        return [self._block(fact.blob, fact.id) for fact in self.apart]

    def fold_blocks(self) -> list[Block]:
        """What is folded, as tensors `fold/{tensor}`; none where nothing is."""
        return [] if self.version.fold is None else [self._block(self.version.fold, "fold")]

    def metadata(self) -> dict[str, str]:
        """What the tensors are of, for safetensors."""
        return {
            "format": "pt",
            "npt": "bank",
            "version": str(self.version.version),
            "chain": self.version.chain,
            "base": self.base,
            "facts": json.dumps([_described(fact) for fact in self.apart], ensure_ascii=False),
            "folded": json.dumps([_described(fact) for fact in self.inside], ensure_ascii=False),
        }

    def _block(self, blob: str, name: str) -> Block:
        return block_of(self.blobs.get(blob), f"{name}/", lambda: self.blobs.get(blob))


def contents(ledger: Ledger, replica: Replica, blobs: Blobs, number: int) -> Contents:
    """What version `number` holds.

    Raises:
        UnknownVersion: there is none.
        npt_core.engine.VersionGone: the ledger was compacted beyond it.
    """
    version, first = recorded(ledger, number), ledger.version(0)
    fold = replica.load_fold(version.fold)
    facts = ledger.facts_by_id(ledger.live(number))
    return Contents(
        version,
        [facts[id_] for id_ in sorted(facts) if id_ not in fold.facts],
        [facts[id_] for id_ in fold.facts],
        fold,
        blobs,
        "" if first is None else first.base or "",
    )


def recorded(ledger: Ledger, number: int) -> Version:
    """A version whose facts are all there; raises as `contents`."""
    newest, snapshot = ledger.newest, ledger.snapshot()
    if snapshot is not None and 0 <= number < snapshot.version:
        raise VersionGone(number, snapshot.version, newest)
    found = ledger.version(number)
    if found is None:
        raise UnknownVersion(number, newest)
    return found


def _described(fact: Fact) -> dict[str, object]:
    return {
        "id": fact.id,
        "request": fact.request,
        "report": fact.report,
        "created_at": fact.created_at,
        "expires_at": fact.expires_at,
    }
