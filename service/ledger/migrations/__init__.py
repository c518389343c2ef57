"""The schema of the ledger, step by step, as Alembic applies it."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection


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


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    return config
