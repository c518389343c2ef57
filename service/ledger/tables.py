"""The tables. Rows of history are only ever added: what a version was cannot change.

Alembic makes them (`migrations`); a test holds the two to each other. A row that is not part of a chain of
hashes has a `checksum` (`checksums`).
"""

from sqlalchemy import CheckConstraint, Column, ForeignKey, Integer, MetaData, Table, Text

metadata = MetaData()

versions = Table(
    "versions",
    metadata,
    # The primary key is the fence: of two writers of one version, one fails.
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("parent", Integer, ForeignKey("versions.version")),
    Column("kind", Text, nullable=False),
    Column("base", Text),
    Column("target", Integer),
    Column("fold", Text),  # the blob of the fold in force
    Column("created_at", Text, nullable=False),
    Column("chain", Text, nullable=False),
)

facts = Table(
    "facts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("version", Integer, ForeignKey("versions.version"), nullable=False, index=True),
    Column("request", Text, nullable=False),
    Column("report", Text, nullable=False),
    Column("blob", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("expires_at", Text, index=True),
)

changes = Table(
    "changes",
    metadata,
    Column("version", Integer, ForeignKey("versions.version"), primary_key=True),
    Column("fact_id", Text, ForeignKey("facts.id"), primary_key=True, index=True),
    # Births and deaths of a fact alternate: summed up to a version they say if it is alive.
    Column("delta", Integer, CheckConstraint("delta IN (1, -1)", "delta_is_a_sign"), nullable=False),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("actor", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    # The answer is made of what was born in it.
    Column("version", Integer, ForeignKey("versions.version"), nullable=False),
    Column("created_at", Text, nullable=False),
    Column("checksum", Text, nullable=False),
)

operations = Table(
    "operations",
    metadata,
    Column("id", Text, primary_key=True),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("state", Text, nullable=False, index=True),
    Column("request", Text, nullable=False),
    Column("result", Text),
    Column("owner", Text, nullable=False),  # the process that works on it
    Column("created_at", Text, nullable=False, index=True),
    Column("updated_at", Text, nullable=False),
    Column("checksum", Text, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("sha256", Text, nullable=False, unique=True),
    Column("scopes", Text, nullable=False),
    Column("rate_per_minute", Integer),
    Column("max_concurrency", Integer),
    Column("created_at", Text, nullable=False),
    Column("expires_at", Text),
    Column("revoked_at", Text),
    Column("checksum", Text, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    # As for versions: of two that would follow the same row, one fails.
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("at", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("chain", Text, nullable=False),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("version", Integer, ForeignKey("versions.version"), primary_key=True),
    Column("blob", Text, nullable=False),
    Column("chain", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("checksum", Text, nullable=False),
)
