"""What was acknowledged, and whether a data folder still holds it."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from service.blobs import BlobError, Blobs, FolderBlobs
from service.ledger import ANONYMOUS, Ledger, LedgerError, sqlite_url
from service.stores import BLOB_FOLDER, LEDGER_FILE


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A change that the service said is made. `fact` was born or died in `version`."""

    version: int
    kind: str
    fact: str
    key: str = ""

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, line: str) -> "Acknowledged":
        """The inverse of `line`."""
        return cls(**json.loads(line))


def problems(data: Path, acknowledged: Iterable[Acknowledged]) -> list[str]:
    """What is wrong with the folder, in words; nothing, if every acknowledged change is there, each version
    is whole, and every blob that is named is what it was.
    """
    if not (data / LEDGER_FILE).exists():
        lost = len(list(acknowledged))
        return [f"lost: {lost} changes, the ledger is not there"] if lost else []
    try:
        ledger = Ledger(sqlite_url(data / LEDGER_FILE))
    except LedgerError as error:
        return [f"damaged: {error}"]
    try:
        return problems_of(ledger, FolderBlobs(data / BLOB_FOLDER), acknowledged)
    finally:
        ledger.close()


def problems_of(ledger: Ledger, blobs: Blobs, acknowledged: Iterable[Acknowledged]) -> list[str]:
    """The same of an open ledger."""
    return [*_lost(ledger, acknowledged), *_broken(ledger, blobs)]


def _lost(ledger: Ledger, acknowledged: Iterable[Acknowledged]) -> list[str]:
    versions = {version.version: version for version in ledger.versions()}
    found = []
    for each in acknowledged:
        version = versions.get(each.version)
        changed = () if version is None else (*version.births, *version.deaths)
        if version is None or str(version.kind) != each.kind or (each.fact and each.fact not in changed):
            found.append(f"lost: {each.line()}")
        elif each.key:
            key = ledger.find_key(ANONYMOUS, each.key)
            if key is None or key[1] != each.version:
                found.append(f"lost: the key of {each.line()}")
    return found


def _broken(ledger: Ledger, blobs: Blobs) -> list[str]:
    snapshot, found = ledger.snapshot(), []
    # What only versions before a snapshot need may be gone: its own blob holds the rest.
    living = set() if snapshot is None else ledger.live(snapshot.version)
    named = {} if snapshot is None else {snapshot.blob: snapshot.version}
    for stored in ledger.facts():
        fact = stored.fact
        if snapshot is None or fact.version > snapshot.version or fact.id in living:
            named[fact.blob] = fact.version
    for blob, version in named.items():
        try:
            blobs.get(blob)
        except BlobError as error:
            found.append(f"half-applied: version {version}: {error}")
    return found


def kinds(found: Sequence[str]) -> set[str]:
    """The first words of problems."""
    return {each.partition(":")[0] for each in found}
