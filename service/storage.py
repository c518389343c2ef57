"""Durable files: what is written here survives a power cut, and only its owner reads it.

StorageError
├── DiskFull       nothing was written; it may work again once there is room
└── StorageFailed  a write or fsync failed: what is on the disk is no longer known
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700


class StorageError(Exception):
    """Base of what can go wrong on the disk."""


class DiskFull(StorageError):
    """There is no room for the write; nothing changed."""


class StorageFailed(StorageError):
    """The disk refused a write; after a failed fsync nothing about it can be trusted."""


def make_private_folder(path: Path) -> None:
    """Create `path` (mode 0700) with its parents, durably; an existing folder is left alone.

    Raises:
        StorageFailed: something else has this name, or the system does not let us.
    """
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        for folder in missing:
            sync_folder(folder.parent)
    except OSError as error:
        raise StorageFailed(f"cannot make the folder {path}: {error.strerror}") from error


def sync_folder(path: Path) -> None:
    """Make the names in `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Put `data` at `path` (mode 0600), whole or not at all.

    Raises:
        DiskFull, StorageFailed: `path` is as it was, except that after a failed fsync of its
            folder the new name may or may not survive a power cut.
    """
    # Several processes may write the same at once.
    temporary = path.with_name(f".tmp-{path.name}-{token_hex(4)}")
    with _as_storage_errors(temporary):
        _write_and_sync(temporary, data)
        os.replace(temporary, path)
        sync_folder(path.parent)


def _write_and_sync(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with os.fdopen(os.open(path, flags, PRIVATE_FILE), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _as_storage_errors(temporary: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        with suppress(OSError):  # a disk that became read-only keeps it
            temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"no room to write {temporary.parent}") from error
        raise StorageFailed(f"cannot write {temporary.parent}: {error.strerror}") from error
