"""Planted bugs, of the kind that only a power cut shows: a harness that misses one proves nothing."""

from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from sqlalchemy import event

import service.blobs
import service.ledger.database as database
import service.storage as storage

NONE = "none"
ACK_FIRST = "ack_first"


def _unsynced_blob() -> None:
    def write(path: Path, data: bytes) -> None:
        unfinished = path.with_name(f".tmp-{path.name}")
        unfinished.write_bytes(data)
        unfinished.rename(path)

    patch.object(service.blobs, "write_durably", write).start()


def _unsynced_folder() -> None:
    for module in (storage, database, service.blobs):
        patch.object(module, "sync_folder", lambda _path: None).start()


def _sync_off() -> None:
    connect = database.connect

    def unsynced(url: str) -> object:
        engine = connect(url)
        event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous=OFF"))
        return engine

    patch("service.ledger.ledger.connect", unsynced).start()


MUTANTS: dict[str, Callable[[], None]] = {
    NONE: lambda: None,
    "unsynced_blob": _unsynced_blob,
    "unsynced_folder": _unsynced_folder,
    "sync_off": _sync_off,
    ACK_FIRST: lambda: None,  # the writer itself says so before it writes
}


def plant(name: str) -> None:
    """Break this process. Raises KeyError for an unknown mutant."""
    MUTANTS[name]()
