"""Rows that no chain covers: whatever column changes, the start is refused, and no reader is given them."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from service.access import Access, NotAuthenticated
from service.ledger import ANONYMOUS, Ledger, LedgerDamaged, sqlite_url, tables
from service.ledger.api_keys import ApiKeys, Scope
from service.ledger.checksums import CHECKED, checksum, with_checksum
from service.ledger.operations import OPEN, OperationLog, OperationState
from tests.service.ledger.conftest import operation
from tests.service.ledger.test_ledger import BASE

COLUMNS = [(table.name, column.name) for table in CHECKED for column in table.columns]
REFERS = {("idempotency", "version"), ("snapshots", "version")}
"""Columns that must name a version that there is."""


def again(ledger: Ledger) -> None:
    """What a start does."""
    Ledger(ledger.engine.url.render_as_string(hide_password=False)).close()


def change(ledger: Ledger, statement: str) -> None:
    """Behind the back of the service."""
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql(statement)


def spoil(ledger: Ledger, table: str, column: str) -> None:
    """Another value of the same type."""
    if isinstance(tables.metadata.tables[table].columns[column].type, sa.Integer):
        value = "2" if (table, column) in REFERS else "7"
    else:
        value = "'{}'" if column in {"request", "result"} else "'x'"
    change(ledger, f"UPDATE {table} SET {column} = {value}")


READERS: dict[str, list[Callable[[Ledger], object]]] = {
    "idempotency": [lambda ledger: ledger.find_key(ANONYMOUS, "k")],
    "operations": [
        lambda ledger: OperationLog(ledger.engine).get("op_1"),
        lambda ledger: OperationLog(ledger.engine).page("", 10, None),
        lambda ledger: OperationLog(ledger.engine).page("", 10, OperationState.PENDING),
        lambda ledger: OperationLog(ledger.engine).abandoned("another", "2027"),
        lambda ledger: OperationLog(ledger.engine).move("op_1", OPEN, OperationState.PENDING, "2026-02"),
    ],
    "api_keys": [lambda ledger: ApiKeys(ledger).all(), lambda ledger: Access(ApiKeys(ledger))],
    "snapshots": [
        lambda ledger: ledger.snapshot(),
        lambda ledger: ledger.blobs(),
        lambda ledger: ledger.dump(),
    ],
}
SOUGHT = {"idempotency": {"actor", "key"}, "operations": {"id", "owner", "state", "updated_at"}}
"""By these rows are looked up: one that is not found is not served, either."""


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_changed_column_is_found_at_start(full: Ledger, table: str, column: str) -> None:
    again(full)
    spoil(full, table, column)
    with pytest.raises(LedgerDamaged, match=f"is damaged: {table} .+: its checksum does not match") as caught:
        again(full)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_changed_column_is_served_to_nobody(full: Ledger, table: str, column: str) -> None:
    for reader in READERS[table]:
        assert reader(full) or table == "operations"
    spoil(full, table, column)
    for reader in READERS[table]:
        if column in SOUGHT.get(table, ()):
            try:
                assert not reader(full)
            except LedgerDamaged:
                continue
        else:
            with pytest.raises(LedgerDamaged, match=f"{table} .+: its checksum does not match"):
                reader(full)


def test_row_is_named(full: Ledger) -> None:
    spoil(full, "operations", "request")
    with pytest.raises(LedgerDamaged, match="operations 'op_1': its checksum"):
        again(full)
    spoil(full, "idempotency", "digest")
    with pytest.raises(LedgerDamaged, match="idempotency 'anonymous' 'k': its checksum"):
        again(full)


@pytest.mark.parametrize("table", [table.name for table in CHECKED])
def test_text_that_became_binary_is_found(tmp_path: Path, table: str) -> None:
    file = Ledger(sqlite_url(tmp_path / "ledger.db"))
    file.bind(BASE)
    columns = tables.metadata.tables[table].columns
    row: dict[str, Any] = {
        column.name: 0 if isinstance(column.type, sa.Integer) else "x" for column in columns
    }
    with file.engine.begin() as connection:
        connection.execute(sa.insert(columns[0].table), with_checksum(tables.metadata.tables[table], row))
    again(file)
    change(file, f"UPDATE {table} SET created_at = CAST(created_at AS BLOB)")
    with pytest.raises(LedgerDamaged, match=f"{table} .+: its checksum does not match"):
        again(file)
    file.close()


def test_row_that_was_written_around_us_is_found(full: Ledger) -> None:
    row = {column.name: "x" for column in tables.operations.columns}
    with full.engine.begin() as connection:
        connection.execute(sa.insert(tables.operations), row)
    with pytest.raises(LedgerDamaged, match="operations 'x'"):
        again(full)


def test_row_of_another_table_is_none_of_ours() -> None:
    assert checksum("operations", {"id": "x"}) != checksum("api_keys", {"id": "x"})


def test_checksum_of_what_is_stored_does_not_change() -> None:
    row = {"version": 1, "blob": "b", "chain": "ü", "created_at": None, "checksum": "any"}
    assert checksum("snapshots", row) == "7cac4e3e4cd7501f38231b09e9ff6d560340cff5e5f9a8faa9e2743b0726231d"


def test_changes_keep_checksums_right(full: Ledger) -> None:
    log, keys = OperationLog(full.engine), ApiKeys(full)
    log.beat("me", "2026-02")
    assert log.move("op_1", OPEN, OperationState.RUNNING, "2026-03")
    log.beat("me", "2026-04")
    assert log.move("op_1", OPEN, OperationState.SUCCEEDED, "2026-05", {"id": "fact_1"})
    assert not log.move("op_1", OPEN, OperationState.FAILED, "2026-06")
    assert not log.move("op_2", OPEN, OperationState.FAILED, "2026-06")
    again(full)
    found = log.get("op_1")
    assert found is not None
    assert (found.state, found.updated_at) == (OperationState.SUCCEEDED, "2026-05")
    assert found.result == {"id": "fact_1"}
    (key,) = keys.all()
    assert keys.revoke(key.id, ANONYMOUS).revoked_at is not None
    again(full)
    log.forget("2026-06")
    assert log.get("op_1") is None


def test_beats_beside_moves_keep_checksums_right(full: Ledger) -> None:
    log, numbers = OperationLog(full.engine), range(2, 12)
    for number in numbers:
        log.add(operation(number))
    won: list[str] = []

    def move(state: OperationState) -> None:
        for number in numbers:
            if log.move(f"op_{number}", [OperationState.PENDING], state, f"2026-02-{number:02}"):
                won.append(f"op_{number}")

    def beat() -> None:
        for number in range(20):
            log.beat("me", f"2026-03-{number:02}")

    jobs = [(move, (OperationState.RUNNING,)), (move, (OperationState.CANCELLED,)), (beat, ()), (beat, ())]
    threads = [threading.Thread(target=work, args=given) for work, given in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == sorted(f"op_{number}" for number in numbers)
    again(full)


def test_damaged_row_is_never_made_sound(full: Ledger) -> None:
    log = OperationLog(full.engine)
    log.add(operation(2))
    change(full, "UPDATE operations SET action = 'other' WHERE id = 'op_1'")
    log.beat("me", "2026-02")
    second = log.get("op_2")
    assert second is not None
    assert second.updated_at == "2026-02"
    change(full, "UPDATE operations SET state = 'failed' WHERE id = 'op_1'")
    log.forget("2026-03")
    with pytest.raises(LedgerDamaged):
        log.get("op_1")


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_text_that_is_no_utf8_is_damage_where_a_row_is_changed(full: Ledger) -> None:
    change(full, "UPDATE operations SET action = CAST(x'ff' AS TEXT)")
    with pytest.raises(LedgerDamaged, match="Could not decode"):
        OperationLog(full.engine).move("op_1", OPEN, OperationState.RUNNING, "2026-02")
    with pytest.raises(LedgerDamaged, match="Could not decode"):
        again(full)


def test_key_that_is_damaged_opens_nothing(full: Ledger) -> None:
    access = Access(ApiKeys(full))
    stranger = ApiKeys(full).create("other", [Scope.GENERATE], ANONYMOUS, secret="stranger")[0]
    change(full, f"UPDATE api_keys SET scopes = '[\"admin\"]' WHERE id = '{stranger.id}'")
    access.refresh()
    with pytest.raises(NotAuthenticated):
        access.identify("Bearer stranger")
    known = access.identify("Bearer secret")
    assert known is not None
    assert known.name == "all"
