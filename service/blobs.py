"""Content-addressed blobs: each is named by the SHA-256 of what it holds.

BlobError
├── BlobMissing      the ledger names a blob that is not there
├── BlobDamaged      the bytes are not those the name promises
├── BlobSealed       no key opens them
└── BlobUnavailable  the object store does not answer, or refuses
"""

import hashlib
import time
from collections.abc import Generator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Protocol

from service.sealing import Cipher, Plain, Sealed
from service.storage import StorageFailed, make_private_folder, sync_folder, write_durably

HEX = frozenset("0123456789abcdef")
ABANDONED_S = 3600.0
"""A blob is written within seconds."""


class BlobError(Exception):
    """Base of what can be wrong with a stored blob."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"blob {name} {reason}")


class BlobMissing(BlobError):
    """There is no such blob."""


class BlobDamaged(BlobError):
    """The content does not match the name."""


class BlobSealed(BlobError):
    """It is encrypted with a key that is not known here, or damaged."""


class BlobUnavailable(BlobError):
    """It may work later."""


class Stored(NamedTuple):
    """A blob that is there, and since when."""

    name: str
    modified: datetime


class Blobs(Protocol):
    """A place for immutable bytes. Facts can be read from them, so they are nobody else's to see."""

    def put(self, data: bytes) -> str:
        """Store `data` durably; returns its name. Raises the `StorageError` or the `BlobError` tree."""

    def get(self, name: str) -> bytes:
        """The bytes of blob `name`, verified. Raises the `BlobError` tree."""

    def get_all(self, names: Sequence[str]) -> Generator[bytes]:
        """The bytes of each, in order, as fast as they come. Raises as `get`, at the one it is about; whoever
        stops before the end closes it.
        """

    def __contains__(self, name: object, /) -> bool:
        """Whether blob `name` is stored; its content is not looked at. Raises the `BlobError` tree."""

    def __iter__(self) -> Iterator[Stored]:
        """All that is stored."""

    def delete(self, name: str) -> None:
        """Remove a blob; one that is not there is no error."""


PLAIN = Plain()


class FolderBlobs:
    """A folder of immutable files (mode 0600). Other processes may write in it, too."""

    def __init__(self, folder: Path, cipher: Cipher = PLAIN) -> None:
        make_private_folder(folder)
        self._folder = folder
        self._cipher = cipher
        for leftover in folder.glob(".tmp-*"):
            _remove_if_abandoned(leftover)

    def put(self, data: bytes) -> str:
        name = hashlib.sha256(data).hexdigest()
        # Written even where it exists: that file may be damaged, or its name not yet durable.
        write_durably(self._folder / name, self._cipher.seal(data))
        return name

    def get(self, name: str) -> bytes:
        path = self._folder / name
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise BlobMissing(str(path), "is missing") from error
        except OSError as error:
            raise BlobDamaged(str(path), f"cannot be read: {error.strerror}") from error
        return opened(str(path), name, data, self._cipher)

    def get_all(self, names: Sequence[str]) -> Generator[bytes]:
        # Small files are there at once: threads would only wait for each other.
        yield from map(self.get, names)

    def __contains__(self, name: object, /) -> bool:
        return (self._folder / str(name)).exists()

    def __iter__(self) -> Iterator[Stored]:
        for path in self._folder.iterdir():
            if is_name(path.name):
                yield Stored(path.name, datetime.fromtimestamp(path.stat().st_mtime, UTC))

    def delete(self, name: str) -> None:
        try:
            (self._folder / name).unlink(missing_ok=True)
            sync_folder(self._folder)
        except OSError as error:
            raise StorageFailed(f"cannot delete {name}: {error.strerror}") from error


def _remove_if_abandoned(unfinished: Path) -> None:
    """A younger one may be another process's, at work."""
    try:
        if time.time() - unfinished.stat().st_mtime > ABANDONED_S:
            unfinished.unlink()
    except FileNotFoundError:
        return


def opened(where: str, name: str, stored: bytes, cipher: Cipher) -> bytes:
    """What was stored as blob `name`, if it is what its name promises. Raises `BlobDamaged`, `BlobSealed`."""
    try:
        data = cipher.open(stored)
    except Sealed as error:
        raise BlobSealed(where, str(error)) from error
    if hashlib.sha256(data).hexdigest() != name:
        raise BlobDamaged(where, "is damaged: its content does not match its name")
    return data


def is_name(text: str) -> bool:
    """Whether `text` is the name of a blob."""
    return len(text) == 64 and set(text) <= HEX
