"""The tables. Rows are only ever added: what a version was cannot change."""

from sqlalchemy import CheckConstraint, Column, ForeignKey, Integer, MetaData, Table, Text

SCHEMA_VERSION = 1

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
)

changes = Table(
    "changes",
    metadata,
    Column("version", Integer, ForeignKey("versions.version"), primary_key=True),
    Column("fact_id", Text, ForeignKey("facts.id"), primary_key=True, index=True),
    # Births and deaths of a fact alternate: summed up to a version they say if it is alive.
    Column("delta", Integer, CheckConstraint("delta IN (1, -1)"), nullable=False),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("key", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("fact_id", Text, ForeignKey("facts.id"), nullable=False),
    Column("created_at", Text, nullable=False),
)
