"""Rows that no chain covers have a checksum each."""

import sqlalchemy as sa
from alembic import op

from service.ledger.checksums import checksum

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_KEYS = {
    "idempotency": ("actor", "key"),
    "operations": ("id",),
    "api_keys": ("id",),
    "snapshots": ("version",),
}


def upgrade() -> None:
    for name, key in _KEYS.items():
        # SQLite adds no column without a default where there are rows; no checksum is empty.
        op.add_column(name, sa.Column("checksum", sa.Text, nullable=False, server_default=""))
        _fill(name, key)
        if op.get_bind().dialect.name != "sqlite":
            # A replica of before that still runs is refused what it inserts, and makes no damage.
            op.alter_column(name, "checksum", server_default=None)


def _fill(name: str, key: tuple[str, ...]) -> None:
    connection = op.get_bind()
    table = sa.Table(name, sa.MetaData(), autoload_with=connection, resolve_fks=False)
    rows = connection.execute(sa.select(table)).mappings().all()
    if not rows:
        return
    change = sa.update(table).where(*(table.c[part] == sa.bindparam(f"of_{part}") for part in key))
    change = change.values(checksum=sa.bindparam("new"))
    connection.execute(
        change,
        [{"new": checksum(name, row)} | {f"of_{part}": row[part] for part in key} for row in rows],
    )
