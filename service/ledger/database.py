"""SQLite and PostgreSQL as the ledger needs them: durable commits, real transactions."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    IntegrityError,
    InternalError,
    NoSuchModuleError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as NoneFree

from service.ledger.errors import LedgerDamaged, LedgerUnavailable
from service.storage import PRIVATE_FILE, DiskFull, StorageFailed, sync_folder

BUSY_TIMEOUT_S = 30
"""Readers hold the file for milliseconds; this is only ever reached when something is wrong."""
CONNECT_TIMEOUT_S = 5
CONNECTIONS = 8
"""Of one process to PostgreSQL, and one more that listens. Ten replicas stay below the 100 that it allows
unless told otherwise."""
FREE_TIMEOUT_S = 10
"""Transactions take milliseconds: where none of the connections comes free, the database hangs."""
_DISK_FULL = "53100"  # SQLSTATE of PostgreSQL
_UNREADABLE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR)


def sqlite_url(path: Path) -> str:
    """The URL of a ledger in a file."""
    return URL.create("sqlite", database=str(path)).render_as_string()


def parsed(url: str) -> URL:
    """A database URL, with the driver that is used here.

    Raises:
        ValueError: it is none, or of another database.
    """
    try:
        found = make_url(url)
    except ArgumentError as error:
        raise ValueError("is no database URL such as postgresql://user@host/name") from error
    if found.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return found.set(drivername="postgresql+psycopg")
    if found.drivername != "sqlite":
        raise ValueError(f"names {found.drivername}: sqlite and postgresql are known")
    if not found.database or found.database == ":memory:":
        raise ValueError("sqlite needs the path of a file")
    return found


def name_of(url: str) -> str:
    """What to call the ledger at `url` in messages: its file, or the URL without its password."""
    found = parsed(url)
    return str(found.database) if found.drivername == "sqlite" else found.render_as_string()


def ledger_name(engine: Engine) -> str:
    """What to call the ledger of `engine` in messages, as `name_of`."""
    return name_of(engine.url.render_as_string(hide_password=False))


def connect(url: str) -> Engine:
    """An engine on the database at `url`; a SQLite file is created empty (mode 0600) where there is none.

    Raises:
        LedgerUnavailable: the driver for PostgreSQL is not installed.
    """
    found = parsed(url)
    if found.drivername != "sqlite":
        return _connect_postgres(found)
    path = Path(str(found.database))
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, PRIVATE_FILE))
        sync_folder(path.parent)
    engine = create_engine(found, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def is_shared(engine: Engine) -> bool:
    """Whether other processes may write, too."""
    return engine.dialect.name != "sqlite"


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One transaction that only reads: all its statements see the database as of one moment, whatever others
    write meanwhile.

    Raises:
        LedgerUnavailable: a database that others share does not answer, or a file is locked for too long.
        StorageFailed: the file cannot be read: a write that failed midway has to be undone first, on a disk
            that takes no more writes.
        LedgerDamaged: the file is not one that the ledger can read.
    """
    try:
        with engine.connect() as connection:
            if is_shared(engine):
                connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection
    except NoneFree as error:
        raise _all_in_use(engine) from error
    except DatabaseError as error:
        if _may_pass(engine, error):
            raise _unavailable(engine, error) from error
        if isinstance(error, OperationalError) and _code(error) in _UNREADABLE:
            raise StorageFailed(f"cannot read the ledger: {_line(error)}") from error
        raise LedgerDamaged(ledger_name(engine), _line(error)) from error


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction, all or nothing.

    Raises:
        DiskFull: nothing was written.
        StorageFailed: whether it was written is not known, nor what the file holds.
        LedgerUnavailable: whether it was written is not known; the database will tell.
        LedgerDamaged: nothing was written: a row that had to be read first cannot be.
    """
    try:
        with engine.execution_options(npt_write=True).begin() as connection:
            yield connection
    except NoneFree as error:
        raise _all_in_use(engine) from error
    except OperationalError as error:
        if _code(error) in (sqlite3.SQLITE_FULL, _DISK_FULL):
            raise DiskFull("no room to write the ledger") from error
        if _may_pass(engine, error):
            raise _unavailable(engine, error) from error
        if not is_shared(engine) and _code(error) is None:  # the driver says so, not SQLite: text is no UTF-8
            raise LedgerDamaged(ledger_name(engine), _line(error)) from error
        raise StorageFailed(f"cannot write the ledger: {error.orig}") from error
    except IntegrityError:
        raise
    except DatabaseError as error:
        if _may_pass(engine, error):
            raise _unavailable(engine, error) from error
        raise StorageFailed(f"cannot write the ledger: {_line(error)}") from error


def integrity_problem(connection: Connection) -> str | None:
    """What SQLite finds wrong with the file, in one line. PostgreSQL looks after its own pages."""
    if connection.dialect.name != "sqlite":
        return None
    try:
        found = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar_one()
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
    except DatabaseError as error:
        return str(error.orig)
    if found != "ok":
        return " ".join(str(found).split())
    return f"a row of {broken[0]} refers to one that is missing" if broken else None


def _connect_postgres(url: URL) -> Engine:
    # A connection that the server dropped is found out before it is used; a machine that is gone
    # without a word, within seconds.
    arguments = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "keepalives_idle": CONNECT_TIMEOUT_S,
        "keepalives_interval": 1,
        "keepalives_count": CONNECT_TIMEOUT_S,
        "tcp_user_timeout": 1000 * FREE_TIMEOUT_S,  # also where something was sent and not acknowledged
        "application_name": "npt",
    }
    try:
        return create_engine(
            url,
            pool_size=CONNECTIONS,
            max_overflow=1,  # the one that listens
            pool_timeout=FREE_TIMEOUT_S,
            pool_pre_ping=True,
            connect_args=arguments,
        )
    except (ImportError, NoSuchModuleError) as error:
        name = url.render_as_string()
        raise LedgerUnavailable(name, "install the extra `postgres`: pip install 'npt[postgres]'") from error


def _all_in_use(engine: Engine) -> LedgerUnavailable:
    return LedgerUnavailable(ledger_name(engine), f"none of its connections came free in {FREE_TIMEOUT_S} s")


def _may_pass(engine: Engine, error: DatabaseError) -> bool:
    """Whether the same may work later: a database moves to another machine, a file is let go of."""
    if is_shared(engine):
        return isinstance(error, OperationalError | InternalError)
    return isinstance(error, OperationalError) and _code(error) == sqlite3.SQLITE_BUSY


def _unavailable(engine: Engine, error: DatabaseError) -> LedgerUnavailable:
    return LedgerUnavailable(ledger_name(engine), _line(error))


def _line(error: DatabaseError) -> str:
    return " ".join(str(error.orig).split())


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


def _code(error: OperationalError) -> int | str | None:
    code: int | None = getattr(error.orig, "sqlite_errorcode", None)
    state: str | None = getattr(error.orig, "sqlstate", None)
    return state if code is None else code & 0xFF  # the kind of error, whatever its details
