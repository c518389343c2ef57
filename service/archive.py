"""A ledger and its blobs as one file, for backup and for moving between databases.

A tar: `manifest.json`, `rows/<table>.jsonl`, `blobs/<sha256>`. API keys and operations stay where they are.
"""

import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from service.blobs import Blobs, is_name
from service.ledger import Ledger, Version
from service.ledger.checksums import CHECKED, with_checksum
from service.storage import PRIVATE_FILE, sync_folder

FORMAT = 2
_WITHOUT_CHECKSUMS = 1
_MANIFEST, _ROWS, _BLOBS = "manifest.json", "rows/", "blobs/"


class ArchiveError(Exception):
    """The file is no archive, or not one that fits here; nothing was changed in the ledger."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an archive holds. `base` is the checkpoint that the facts belong to."""

    format: int
    base: str
    newest: int
    chain: str
    facts: int
    blobs: int


def write_archive(ledger: Ledger, blobs: Blobs, path: Path) -> Manifest:
    """Everything as of one moment, also beside a running server.

    Raises:
        ArchiveError: the ledger is empty.
        LedgerError, BlobError: it cannot be read whole.
        OSError: `path` cannot be written; a file that was there is still there.
    """
    rows, needed = ledger.dump()
    versions = rows["versions"]
    if not versions:
        raise ArchiveError("the ledger is empty")
    names = sorted(needed)
    newest = max(versions, key=lambda row: int(row["version"]))
    base = next(str(row["base"]) for row in versions if row["version"] == 0)
    manifest = Manifest(FORMAT, base, newest["version"], newest["chain"], len(rows["facts"]), len(names))
    unfinished = path.with_name(f".tmp-{path.name}")
    try:
        descriptor = os.open(unfinished, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, PRIVATE_FILE)
        with open(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
            _add(archive, _MANIFEST, json.dumps(asdict(manifest)).encode())
            for name in names:
                _add(archive, _BLOBS + name, blobs.get(name))
            for table, found in rows.items():
                lines = "".join(json.dumps(row) + "\n" for row in found)
                _add(archive, f"{_ROWS}{table}.jsonl", lines.encode())
            archive.close()
            file.flush()
            os.fsync(descriptor)
        unfinished.replace(path)
        sync_folder(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)
    return manifest


def read_archive(ledger: Ledger, blobs: Blobs, path: Path) -> Manifest:
    """Put everything of an archive into an empty ledger: all of it or nothing.

    Raises:
        ArchiveError: not an archive, cut short, changed, or the ledger is not empty.
        LedgerError, StorageError, BlobError: it cannot be stored.
    """
    if ledger.version(0) is not None:
        raise ArchiveError(f"ledger {ledger.name} is not empty")
    rows: dict[str, list[dict[str, Any]]] = {}
    manifest: Manifest | None = None
    stored: set[str] = set()
    try:
        with tarfile.open(path, "r:") as archive:
            for name, data in _members(archive):
                if name == _MANIFEST:
                    manifest = Manifest(**json.loads(data))
                elif name.startswith(_BLOBS):
                    _store(blobs, name.removeprefix(_BLOBS), data)
                    stored.add(name.removeprefix(_BLOBS))
                else:
                    table = name.removeprefix(_ROWS).removesuffix(".jsonl")
                    rows[table] = [json.loads(line) for line in data.splitlines()]
    except (tarfile.TarError, EOFError, ValueError, TypeError) as error:
        raise ArchiveError(f"{path}: not an archive of a ledger: {error}") from error
    if manifest is None or manifest.format not in (FORMAT, _WITHOUT_CHECKSUMS):
        raise ArchiveError(f"{path}: not an archive that this release knows")
    if (len(stored), len(rows.get("facts", ()))) != (manifest.blobs, manifest.facts):
        raise ArchiveError(f"{path}: cut short")
    if manifest.format == _WITHOUT_CHECKSUMS:
        rows |= _with_checksums(rows, path)
    ledger.restore(rows, partial(_problem, manifest, stored))
    return manifest


def _with_checksums(rows: Mapping[str, list[dict[str, Any]]], path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        return {
            table.name: [with_checksum(table, row) for row in rows[table.name]]
            for table in CHECKED
            if table.name in rows
        }
    except KeyError as error:
        raise ArchiveError(f"{path}: a row lacks column {error}") from error


def _problem(manifest: Manifest, stored: set[str], versions: list[Version], needed: set[str]) -> str | None:
    """Why history and blobs of an archive are not those of its manifest."""
    if not versions:
        return "the archive holds no versions"
    told = (manifest.base, manifest.newest, manifest.chain)
    if told != (versions[0].base, versions[-1].version, versions[-1].chain):
        return "its versions are not those of its manifest"
    missing = needed - stored
    return f"blob {min(missing)} is not in the archive" if missing else None


def _members(archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in archive:
        content: IO[bytes] | None = archive.extractfile(member)
        if content is None:
            raise ValueError(f"{member.name} is not a file")
        data = content.read()
        if len(data) != member.size:
            raise EOFError(f"{member.name} is cut short")
        yield member.name, data


def _store(blobs: Blobs, name: str, data: bytes) -> None:
    if not is_name(name) or blobs.put(data) != name:
        raise ValueError(f"blob {name[:64]} is damaged")


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o600
    archive.addfile(member, io.BytesIO(data))
