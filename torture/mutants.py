"""Planted bugs, of the kind that only a power cut or another writer shows: a harness must find them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sqlalchemy import Engine, event

import service.blobs
import service.ledger.database as database
from service.ledger import Change, Ledger, Version, tables
from service.writer import Writer

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


def _last_writer_wins() -> None:
    """Of two writers of one version the second is not refused: it overwrites what the first one made."""
    commit = Ledger.commit

    def overwrite(self: Ledger, change: Change, *arguments: Any) -> Version:
        with database.writing(self.engine) as connection:
            for table in (tables.changes, tables.idempotency, tables.facts, tables.versions):
                connection.execute(table.delete().where(table.c.version > change.parent))
        return commit(self, change, *arguments)

    patch.object(Ledger, "commit", overwrite).start()


def _hasty_replay() -> None:
    """A key finds what the ledger shows of a commit that failed, though a power cut may still undo it."""
    patch.object(Writer, "_refuse_what_may_not_last", lambda *_: None).start()


MUTANTS: dict[str, Callable[[], None]] = {
    NONE: lambda: None,
    "unsynced_blob": _unsynced_blob,
    "sync_off": _synchronous("OFF"),
    "sync_full": _synchronous("FULL"),  # the journal's end is not synced, so a commit may be undone
    ACK_FIRST: lambda: None,  # the writer itself says so before it writes
}
HASTY_REPLAY = "hasty_replay"
OF_FAILURES: dict[str, Callable[[], None]] = {NONE: lambda: None, HASTY_REPLAY: _hasty_replay}
"""Those that only a call that fails shows."""
LOST_UPDATE = "lost_update"
OF_REPLICAS: dict[str, Callable[[], None]] = {NONE: lambda: None, LOST_UPDATE: _last_writer_wins}
"""Those that only several writers show."""


def plant(name: str) -> None:
    """Break this process. Raises KeyError for an unknown mutant."""
    (MUTANTS | OF_FAILURES | OF_REPLICAS)[name]()
