"""The short form of `python -m torture corrupt`; and that it knows which bytes are live."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from torture import contents, corruption
from torture.corruption import Outcome
from torture.mutants import NONE
from torture.process import WriterProcess


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> corruption._Sound:
    return corruption._Sound(tmp_path_factory.mktemp("sound") / "data")


def test_bits_that_rot_are_found_and_never_served(tmp_path: Path) -> None:
    outcome = corruption.run(tmp_path, rounds=12)
    assert outcome.problems == []
    assert outcome.live == 12
    assert min(outcome.detected, outcome.detected_when_read) > 0
    assert outcome.detected + outcome.detected_when_read == 12


def test_every_table_has_rows_that_can_rot(sound: corruption._Sound) -> None:
    found = contents.read(sound.data / "ledger.db")
    assert {name for name, rows in found.items() if len(rows) < 2} == set()


@pytest.fixture
def copy(sound: corruption._Sound, tmp_path: Path) -> Path:
    return shutil.copytree(sound.data, tmp_path / "data")


def _change(data: Path, statement: str) -> None:
    with closing(sqlite3.connect(data / "ledger.db", isolation_level=None)) as connection:
        connection.execute(statement)


@pytest.mark.parametrize(
    ("statement", "columns"),
    [
        ("DELETE FROM idempotency", {"idempotency", "idempotency by sqlite_autoindex_idempotency_1"}),
        ("UPDATE operations SET result = '{}'", {"operations.result"}),
        ("UPDATE snapshots SET created_at = CAST(created_at AS BLOB)", {"snapshots.created_at"}),
    ],
)
def test_what_a_table_holds_is_compared(
    sound: corruption._Sound, copy: Path, statement: str, columns: set[str]
) -> None:
    _change(copy, statement)
    assert sound.struck(copy / "ledger.db") == columns


def test_dead_bytes_are_no_damage(sound: corruption._Sound, copy: Path) -> None:
    content = bytearray((copy / "ledger.db").read_bytes())
    content[80] ^= 1  # of the header, reserved
    (copy / "ledger.db").write_bytes(content)
    assert sound.struck(copy / "ledger.db") == set()
    assert sound.struck(copy / "blobs" / "unneeded") == set()


@pytest.mark.parametrize(
    "statement",
    ["UPDATE audit SET actor = 'somebody'", "UPDATE operations SET actor = CAST(actor AS BLOB)"],
)
def test_row_that_was_changed_is_found(sound: corruption._Sound, copy: Path, statement: str) -> None:
    _change(copy, statement)
    outcome = Outcome()
    assert corruption._look(sound, copy, sound.struck(copy / "ledger.db"), outcome) is None
    assert outcome.detected == 1


def test_damage_that_is_not_found_is_a_problem(sound: corruption._Sound, copy: Path) -> None:
    assert corruption._look(sound, copy, {"operations.owner"}, Outcome()) == "not found"


def test_other_answers_are_a_problem(sound: corruption._Sound, copy: Path) -> None:
    writer = WriterProcess(copy, NONE, "ask")
    writer.ask("retract")
    writer.line()
    writer.kill()
    struck = sound.struck(copy / "ledger.db")
    assert corruption._look(sound, copy, struck, Outcome()) == "served"


def test_blob_that_no_start_reads_is_found_when_it_is_read(sound: corruption._Sound, copy: Path) -> None:
    outcome = Outcome()
    for blob in sound.needed:
        sound_bytes = (copy / "blobs" / blob).read_bytes()
        (copy / "blobs" / blob).write_bytes(sound_bytes[:-1])
        assert corruption._look(sound, copy, {corruption.A_BLOB}, outcome) is None
        (copy / "blobs" / blob).write_bytes(sound_bytes)
    assert outcome.detected + outcome.detected_when_read == len(sound.needed)
    assert min(outcome.detected, outcome.detected_when_read) > 0
