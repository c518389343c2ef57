"""A hash of each row that no chain covers: keys, what was answered, what is under way, snapshots.

Rows of these tables change or are deleted, so each has a hash of its own, in the row itself.
"""

from typing import Any

from sqlalchemy import Connection, RowMapping, Table, select

from service.ledger.chain import digest
from service.ledger.database import ledger_name
from service.ledger.errors import LedgerDamaged
from service.ledger.rows import Row
from service.ledger.tables import api_keys, idempotency, operations, snapshots

CHECKED = (idempotency, operations, api_keys, snapshots)


def checksum(table: str, row: Row) -> str:
    """Over the table's name and every column of `row` but the checksum. Stored rows, archives and a migration
    hold to it: it cannot change.
    """
    columns = {name: value for name, value in row.items() if name != "checksum"}
    return digest({"table": table, "row": columns})


def with_checksum(table: Table, row: Row) -> dict[str, Any]:
    """`row`, whole and as it is to be written. Raises KeyError where it lacks a column."""
    names = [column.name for column in table.columns if column.name != "checksum"]
    columns = {name: row[name] for name in names}
    return {**columns, "checksum": checksum(table.name, columns)}


def row_problem(table: Table, row: Row) -> str | None:
    """What is wrong with a row as it was read, in one line; `None` if nothing is."""
    try:
        if row["checksum"] == checksum(table.name, row):
            return None
    except TypeError:  # text that became binary
        pass
    name = " ".join(repr(row[column.name]) for column in table.primary_key)
    return f"{table.name} {name}: its checksum does not match"


def sound(connection: Connection, table: Table, row: RowMapping) -> RowMapping:
    """The row, which was read to decide something. Raises LedgerDamaged where it is not as it was written."""
    problem = row_problem(table, row)
    if problem is not None:
        raise LedgerDamaged(ledger_name(connection.engine), problem)
    return row


def checksum_problem(connection: Connection) -> str | None:
    """What is wrong with the first row that is not as it was written, in one line; `None` if all are."""
    for table in CHECKED:
        for row in connection.execute(select(table)).mappings():
            problem = row_problem(table, row)
            if problem is not None:
                return problem
    return None
