"""All that SQL reads of a SQLite file, for comparison: rows of tables, and of indexes on their own."""

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

SCHEMA = "sqlite_schema"
Rows = list[tuple[object, ...]]
Contents = Mapping[str, Rows]
"""By table, or by table and index; the first row names the columns. Without any where they cannot be read."""


def read(file: Path) -> Contents:
    """What the file holds."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        connection.text_factory = _text
        found = {SCHEMA: _rows(connection, f"SELECT * FROM {SCHEMA} ORDER BY rowid")}
        # By the names that SQLite knows them by, which need not be those that the schema says.
        for table in _names(connection, "PRAGMA main.table_list"):
            if table.startswith("sqlite_"):
                continue
            found[table] = _rows(connection, f'SELECT rowid, * FROM "{table}" NOT INDEXED ORDER BY rowid')
            for index in _names(connection, f'PRAGMA index_list("{table}")'):
                found[f"{table} by {index}"] = _indexed(connection, table, index)
        return found


def changed(before: Contents, after: Contents) -> set[str]:
    """Where two files differ, as `table.column`, or the table alone where its rows cannot be compared."""
    names = before.keys() | after.keys()
    return {each for name in names for each in _changed(name, before.get(name, []), after.get(name, []))}


def _changed(name: str, before: Rows, after: Rows) -> set[str]:
    if len(before) != len(after) or before[:1] != after[:1]:
        return {name}
    return {
        f"{name}.{column}"
        for old, new in zip(before[1:], after[1:], strict=True)
        for column, was, is_ in zip(before[0], old, new, strict=True)
        if (type(was), was) != (type(is_), is_)
    }


def _indexed(connection: sqlite3.Connection, table: str, index: str) -> Rows:
    """What an index holds, read from it alone."""
    info = _rows(connection, f'PRAGMA index_info("{index}")')
    columns = ", ".join(f'"{row[2]}"' for row in info[1:])
    return _rows(
        connection, f'SELECT {columns}, rowid FROM "{table}" INDEXED BY "{index}" ORDER BY {columns}, rowid'
    )


def _names(connection: sqlite3.Connection, query: str) -> list[str]:
    return [f"{row[1]}" for row in _rows(connection, query)[1:]]


def _rows(connection: sqlite3.Connection, query: str) -> Rows:
    try:
        cursor = connection.execute(query)
        return [tuple(column[0] for column in cursor.description), *cursor]
    except (sqlite3.Error, UnicodeError):  # an error may name what is no text any more
        return []


def _text(stored: bytes) -> str:
    """Also where it is no UTF-8 any more."""
    return stored.decode(errors="surrogateescape")
