"""Planted bugs, of the kind that only a power cut shows: a harness that misses one proves nothing."""

from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from sqlalchemy import Engine, event

import service.blobs
import service.ledger.database as database

NONE = "none"
ACK_FIRST = "ack_first"


def _unsynced_blob() -> None:
    def write(path: Path, data: bytes) -> None:
        unfinished = path.with_name(f".tmp-{path.name}")
        unfinished.write_bytes(data)
        unfinished.rename(path)

    patch.object(service.blobs, "write_durably", write).start()


def _synchronous(level: str) -> Callable[[], None]:
    def plant() -> None:
        connect = database.connect

        def weaker(url: str) -> Engine:
            engine = connect(url)
            event.listen(engine, "connect", lambda raw, _: raw.execute(f"PRAGMA synchronous={level}"))
            return engine

        patch("service.ledger.ledger.connect", weaker).start()

    return plant


MUTANTS: dict[str, Callable[[], None]] = {
    NONE: lambda: None,
    "unsynced_blob": _unsynced_blob,
    "sync_off": _synchronous("OFF"),
    "sync_full": _synchronous("FULL"),  # the journal's end is not synced, so a commit may be undone
    ACK_FIRST: lambda: None,  # the writer itself says so before it writes
}


def plant(name: str) -> None:
    """Break this process. Raises KeyError for an unknown mutant."""
    MUTANTS[name]()
