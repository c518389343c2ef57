"""Checkpoints that are fetched from elsewhere, each file checked against the hash in their manifest.

ModelFilesError
├── ManifestInvalid    it is missing, not readable, names a file outside, or is not the one that was asked for
├── FileDamaged        a file is not what the manifest promises
├── FolderTaken        the folder holds a file that the manifest does not name
└── SourceUnavailable  the store does not answer, or refuses
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

if TYPE_CHECKING:
    from obstore.store import ObjectStore

MANIFEST = "manifest.json"
LOCK = ".fetch.lock"
PIECE = 16 * 2**20
"""Bytes of one request: what a transfer that is cut off loses at most."""
TIMEOUT_S = 120
FILES_AT_ONCE = 4

_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ModelFilesError(Exception):
    """Base of what can go wrong."""


class ManifestInvalid(ModelFilesError):
    """There is nothing to go by."""


class FileDamaged(ModelFilesError):
    """What was fetched of it is thrown away."""


class FolderTaken(ModelFilesError):
    """Something else is there: an old file beside new ones would be loaded, too."""


class SourceUnavailable(ModelFilesError):
    """It may work later, and goes on where it stopped."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: its path inside the folder, and what it holds."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """Files that are there now, their bytes, and how many of these were transferred."""

    files: int
    size: int
    transferred: int


def write_manifest(folder: Path) -> str:
    """Describe every file of `folder` in its manifest; returns the SHA-256 of the manifest."""
    entries = [
        {"path": name, "size": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
        for name in sorted(_files(folder))
        if name != MANIFEST
    ]
    data = (json.dumps({"files": entries}, indent=1) + "\n").encode()
    (folder / MANIFEST).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def fetch(url: str, folder: Path, manifest_sha256: str | None = None) -> Fetched:
    """Bring the checkpoint at `url` into `folder`. What is there already and right is not transferred again,
    and what was begun is gone on with; another process that fetches into the same folder is waited for.

    Raises the `ModelFilesError` tree, and OSError where the folder cannot be written.
    """
    store = _opened(url)
    raw = _manifest(store, url)
    if manifest_sha256 and hashlib.sha256(raw).hexdigest() != manifest_sha256:
        raise ManifestInvalid(f"{url}/{MANIFEST} is not the one with SHA-256 {manifest_sha256}")
    entries = _entries(url, raw)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK):
        foreign = sorted(set(_files(folder)) - {entry.path for entry in entries} - {MANIFEST})
        if foreign:
            raise FolderTaken(f"{folder} holds {foreign[0]}, which the manifest of {url} does not name")
        with ThreadPoolExecutor(FILES_AT_ONCE) as executor:
            transferred = sum(executor.map(lambda entry: _fetch_file(store, url, entry, folder), entries))
        (folder / MANIFEST).write_bytes(raw)
    return Fetched(len(entries), sum(entry.size for entry in entries), transferred)


def _fetch_file(store: "ObjectStore", url: str, entry: Entry, folder: Path) -> int:
    path = folder / entry.path
    if path.is_file() and path.stat().st_size == entry.size and _sha256(path) == entry.sha256:
        return 0
    partial = folder / f".{entry.sha256}.partial"
    transferred = _complete(store, url, entry, partial)
    if _sha256(partial) != entry.sha256:
        partial.unlink()
        raise FileDamaged(f"{url}/{entry.path} does not have the SHA-256 {entry.sha256} of the manifest")
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(partial, path)
    return transferred


def _complete(store: "ObjectStore", url: str, entry: Entry, partial: Path) -> int:
    """Append what `partial` lacks; returns how much that was."""
    from obstore.exceptions import BaseError

    with partial.open("ab") as file:
        begun = min(file.tell(), entry.size)
        file.truncate(begun)
        for start in range(begun, entry.size, PIECE):
            length = min(PIECE, entry.size - start)
            try:
                piece = store.get_range(entry.path, start=start, length=length).to_bytes()
            except FileNotFoundError as error:
                raise FileDamaged(f"{url}/{entry.path} is missing") from error
            except BaseError as error:
                raise _unavailable(f"{url}/{entry.path}", error) from error
            if len(piece) != length:
                raise FileDamaged(f"{url}/{entry.path} is shorter than {entry.size} bytes")
            file.write(piece)
            file.flush()
        os.fsync(file.fileno())
    return entry.size - begun


def _opened(url: str) -> "ObjectStore":
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url

        from service.object_stores import client_options, open_s3
    except ImportError as error:
        raise SourceUnavailable("fetching needs the extra `s3`: pip install 'npt[s3]'") from error
    try:
        if url.startswith("s3://"):
            return open_s3(url, TIMEOUT_S)
        if url.startswith("file://"):
            return from_url(url)
        return from_url(url, client_options=client_options(TIMEOUT_S))
    except (BaseError, ValueError) as error:
        raise _unavailable(url, error) from error


def _manifest(store: "ObjectStore", url: str) -> bytes:
    from obstore.exceptions import BaseError

    try:
        return store.get(MANIFEST).bytes().to_bytes()
    except FileNotFoundError as error:
        raise ManifestInvalid(f"{url} has no {MANIFEST}: `npt model manifest` writes one") from error
    except BaseError as error:
        raise _unavailable(url, error) from error


def _entries(url: str, raw: bytes) -> list[Entry]:
    try:
        entries = [_entry(each) for each in json.loads(raw)["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestInvalid(f"{url}/{MANIFEST} is not a manifest: {error!r}") from error
    if not entries or len({entry.path for entry in entries}) != len(entries):
        raise ManifestInvalid(f"{url}/{MANIFEST} names no file, or one twice")
    return entries


def _entry(said: dict[str, Any]) -> Entry:
    entry = Entry(said["path"], said["size"], said["sha256"])
    sound = _PATH.fullmatch(entry.path) and _SHA256.fullmatch(entry.sha256)
    if not sound or type(entry.size) is not int or entry.size < 0 or entry.path == MANIFEST:
        raise ValueError(f"{entry} cannot be a file of a checkpoint")
    return entry


def _files(folder: Path) -> Iterator[str]:
    """Every file but hidden ones, which are this module's own."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            yield path.relative_to(folder).as_posix()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unavailable(where: str, error: Exception) -> SourceUnavailable:
    return SourceUnavailable(f"{where} is out of reach: {str(error).splitlines()[0][:300]}")
