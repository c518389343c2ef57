"""Content-addressed blobs: a file is named by the SHA-256 of what it holds.

BlobError
├── BlobMissing  the ledger names a blob that is not there
└── BlobDamaged  the bytes are not those the name promises
"""

import hashlib
from pathlib import Path

from service.storage import make_private_folder, write_durably


class BlobError(Exception):
    """Base of what can be wrong with a stored blob."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"blob {path} {reason}")
        self.path = path


class BlobMissing(BlobError):
    """There is no such file."""


class BlobDamaged(BlobError):
    """The content does not match the name."""


class BlobStore:
    """A folder of immutable files. Facts can be read from them, so they are the owner's alone."""

    def __init__(self, folder: Path) -> None:
        make_private_folder(folder)
        self._folder = folder
        for leftover in folder.glob(".tmp-*"):
            leftover.unlink()

    def put(self, data: bytes) -> str:
        """Store `data` durably; returns its name. Raises the `StorageError` tree."""
        name = hashlib.sha256(data).hexdigest()
        # Written even where it exists: that file may be damaged, or its name not yet durable.
        write_durably(self._folder / name, data)
        return name

    def get(self, name: str) -> bytes:
        """The bytes of blob `name`, verified.

        Raises:
            BlobMissing, BlobDamaged: with the path.
        """
        path = self._folder / name
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise BlobMissing(path, "is missing") from error
        except OSError as error:
            raise BlobDamaged(path, f"cannot be read: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != name:
            raise BlobDamaged(path, "is damaged: its content does not match its name")
        return data
