"""A ledger of an earlier release is brought up to date, and what it holds stays."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command

from service.ledger import ANONYMOUS, IdempotencyKey, Ledger, LedgerDamaged, migrations
from service.ledger.api_keys import ApiKeys, Scope
from service.ledger.checksums import CHECKED
from service.ledger.database import connect, writing
from service.ledger.operations import OperationLog
from tests.service.ledger.conftest import operation


def taken_back(full: Ledger) -> None:
    """The schema of 0001 with the same rows."""
    with writing(full.engine) as connection:
        for table in CHECKED:
            connection.exec_driver_sql(f"ALTER TABLE {table.name} DROP COLUMN checksum")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0001'")


def test_rows_of_before_get_checksums(full: Ledger, url: str) -> None:
    keys, log = ApiKeys(full), OperationLog(full.engine)
    keys.create("half", [Scope.GENERATE], ANONYMOUS)
    before = keys.all(), log.page("", 10, None), full.find_key(ANONYMOUS, "k"), full.snapshot()
    taken_back(full)
    again = Ledger(url)
    assert before == (
        ApiKeys(again).all(),
        OperationLog(again.engine).page("", 10, None),
        again.find_key(ANONYMOUS, "k"),
        again.snapshot(),
    )
    assert again.find_key(ANONYMOUS, "k") == (IdempotencyKey("k", "d"), 1)
    OperationLog(again.engine).add(operation(2))
    again.close()
    Ledger(url).close()


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_replica_of_before_is_refused_what_it_inserts(full: Ledger, url: str) -> None:
    taken_back(full)
    Ledger(url).close()
    with pytest.raises(sa.exc.IntegrityError), full.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO snapshots VALUES (2, 'b', 'c', '2026')")


def test_each_step_makes_what_the_next_one_needs(url: str) -> None:
    engine = connect(url)
    with writing(engine) as connection:
        config = migrations._config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    engine.dispose()
    Ledger(url).close()


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("delta IN (1, -1)", "delta IN (1, -9)"),
        ("FOREIGN KEY(fact_id)", "FOREIGN KEY (fact_id)"),
        ("revoked_at TEXT", "revoked_at TEXU"),
    ],
)
def test_schema_that_was_changed_is_found(
    full: Ledger,
    url: str,
    was: str,
    becomes: str,
) -> None:
    with full.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA writable_schema = ON")
        connection.exec_driver_sql(f"UPDATE sqlite_master SET sql = replace(sql, '{was}', '{becomes}')")
        connection.commit()
    with pytest.raises(LedgerDamaged, match="its schema is not as it was made"):
        Ledger(url)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_tables_of_others_and_vacuum_are_no_damage(full: Ledger, url: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE others (name TEXT PRIMARY KEY)")
        connection.execute("CREATE INDEX facts_by_report ON facts (report)")
        connection.execute("ANALYZE")
        connection.execute("VACUUM")
    Ledger(url).close()


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_file_made_of_a_dump_is_taken(full: Ledger, url: str) -> None:
    with full.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA user_version = 0")
        connection.commit()
    Ledger(url).close()
