"""Whatever is done to the file, opening it says so in one line, or finds every fact."""

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.ledger import Change, Ledger, LedgerDamaged, LedgerTooNew, VersionKind, sqlite_url
from service.storage import StorageFailed
from tests.service.ledger.test_ledger import BASE, birth


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "ledger.db"
    ledger = Ledger(sqlite_url(file))
    ledger.bind(BASE)
    ledger.commit(birth(0, 0))
    ledger.commit(birth(1, 1))
    ledger.commit(Change(2, VersionKind.RETRACT, deaths=("fact_0",)))
    ledger.close()
    return file


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ('UPDATE facts SET request = \'{"fact":"The sky is green."}\'', "chain hash"),
        ("UPDATE facts SET report = '{}' WHERE id = 'fact_1'", "version 2: its chain hash"),
        ("UPDATE facts SET blob = '11' WHERE id = 'fact_0'", "version 1: its chain hash"),
        ("UPDATE facts SET request = 'no json'", "Expecting value"),
        ("UPDATE versions SET created_at = 'x' WHERE version = 1", "version 1: its chain hash"),
        ("UPDATE versions SET kind = 'magic' WHERE version = 1", "magic"),
        ("UPDATE versions SET base = 'x' WHERE version = 0", "version 0: its chain hash"),
        ("UPDATE versions SET parent = 0 WHERE version = 2", "version 2: its parent"),
        ("DELETE FROM versions WHERE version = 3", "refers to one that is missing"),
        ("DELETE FROM changes WHERE version = 3", "version 3: its chain hash"),
        ("DELETE FROM changes WHERE version = 1", "version 1: its chain hash"),
        ("DELETE FROM facts WHERE id = 'fact_1'", "refers to one that is missing"),
        ("UPDATE changes SET fact_id = 'fact_1' WHERE version = 3", "version 3: its chain hash"),
        ("UPDATE audit SET at = CAST(at AS BLOB)", "bytes is not JSON serializable"),
        ("DROP TABLE changes", "no such table"),
    ],
)
def test_changed_row_is_found(path: Path, statement: str, reason: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()
    with pytest.raises(LedgerDamaged, match=reason) as caught:
        Ledger(sqlite_url(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_file_that_is_no_database_is_found(path: Path) -> None:
    path.write_bytes(b"not a database, only some text" * 100)
    with pytest.raises(LedgerDamaged, match="not a database"):
        Ledger(sqlite_url(path))


def test_file_cut_short_is_found(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4096])
    with pytest.raises(LedgerDamaged):
        Ledger(sqlite_url(path))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_flipped_bit_is_found_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = tmp_path_factory.mktemp("flip") / "ledger.db"
    ledger = Ledger(sqlite_url(file))
    ledger.bind(BASE)
    ledger.commit(birth(0, 0))
    expected = (ledger.versions(), ledger.facts())
    ledger.close()
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    try:
        opened = Ledger(sqlite_url(file))
    except (LedgerDamaged, LedgerTooNew):
        return
    assert (opened.versions(), opened.facts()) == expected
    opened.close()


def test_later_schema_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(LedgerTooNew, match="schema 9999"):
        Ledger(sqlite_url(path))


def test_file_that_cannot_be_opened_is_not_called_damaged(path: Path) -> None:
    ledger = Ledger(sqlite_url(path))
    ledger.engine.dispose()
    path.rename(path.with_suffix(".gone"))
    path.mkdir()
    with pytest.raises(StorageFailed, match="cannot read the ledger: unable to open"):
        ledger.version(0)
    ledger.close()
