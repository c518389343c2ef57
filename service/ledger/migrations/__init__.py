"""The schema of the ledger, step by step, as Alembic applies it."""

import hashlib
import json
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from service.ledger.tables import metadata


class UnknownRevision(Exception):
    """A later release made this schema."""


def is_current(connection: Connection) -> bool:
    """Whether there is nothing to do.

    Raises:
        UnknownRevision: the message is the revision.
    """
    script = ScriptDirectory.from_config(_config())
    found = MigrationContext.configure(connection).get_current_revision()
    if found is not None and found not in {revision.revision for revision in script.walk_revisions()}:
        raise UnknownRevision(found)
    return found == script.get_current_head()


def upgrade(connection: Connection) -> None:
    """Bring the schema up to date, within the transaction of `connection`."""
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(f"PRAGMA user_version = {_fingerprint(connection)}")


def schema_problem(connection: Connection) -> str | None:
    """Whether a SQLite file says of our tables what it said after `upgrade`: nothing else looks at the names
    and constraints in it. PostgreSQL looks after its own catalogue.
    """
    if connection.dialect.name != "sqlite":
        return None
    noted = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    # A file made again of a dump in SQL has none.
    return None if noted in (0, _fingerprint(connection)) else "its schema is not as it was made"


def _fingerprint(connection: Connection) -> int:
    """Of the schema, in the 32 bits that SQLite has room for in its header. Where tables begin may change."""
    names = {"alembic_version", *metadata.tables}
    # What SQLite makes for keys and UNIQUE, and what we name.
    ours = names | {f"sqlite_autoindex_{name}_{number}" for name in names for number in (1, 2)}
    ours |= {str(index.name) for table in metadata.tables.values() for index in table.indexes}
    found = connection.exec_driver_sql("SELECT name, type, tbl_name, sql FROM sqlite_master").all()
    kept = sorted([*row] for row in found if row[0] in ours)
    whole = hashlib.sha256(json.dumps(kept).encode()).digest()
    return int.from_bytes(whole[:4], signed=True) or 1


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config
