"""SQLite as the ledger needs it: durable commits, real transactions, a private file."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError

from service.storage import PRIVATE_FILE, DiskFull, StorageFailed, sync_folder

BUSY_TIMEOUT_S = 30
"""Readers hold the file for milliseconds; this is only ever reached when something is wrong."""


def connect(path: Path) -> Engine:
    """An engine on the file at `path`, created empty (mode 0600) where there is none."""
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, PRIVATE_FILE))
        sync_folder(path.parent)
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction, all or nothing.

    Raises:
        DiskFull: nothing was written.
        StorageFailed: whether it was written is not known.
    """
    try:
        with engine.execution_options(npt_write=True).begin() as connection:
            yield connection
    except OperationalError as error:
        if _code(error) == sqlite3.SQLITE_FULL:
            raise DiskFull("no room to write the ledger") from error
        raise StorageFailed(f"cannot write the ledger: {error.orig}") from error


def integrity_problem(connection: Connection) -> str | None:
    """What SQLite finds wrong with the file, in one line."""
    try:
        found = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar_one()
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
    except DatabaseError as error:
        return str(error.orig)
    if found != "ok":
        return " ".join(str(found).split())
    return f"a row of {broken[0]} refers to one that is missing" if broken else None


def _configure(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # SQLAlchemy says BEGIN, see below, not the driver.
    # WAL of SQLite before 3.51.3 can lose a commit when the log is reset; the rollback journal
    # cannot, and EXTRA also syncs the folder after the journal is gone.
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.execute("PRAGMA synchronous=EXTRA")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin(connection: Connection) -> None:
    # A writer takes its lock at once: a deferred one could fail half-way through.
    write = connection.get_execution_options().get("npt_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _code(error: OperationalError) -> int | None:
    code: int | None = getattr(error.orig, "sqlite_errorcode", None)
    return code
