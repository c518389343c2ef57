from __future__ import annotations

from pathlib import Path

import pytest

from npt_core.evaluation.journal import Journal, Key

KEY = Key("bank", "sequence", facts=10)


def never() -> dict[str, float]:
    raise AssertionError("measured twice")


def test_a_measurement_is_made_once() -> None:
    journal = Journal()
    assert journal.once(KEY, lambda: {"recall": 1.0}) == {"recall": 1.0}
    assert journal.once(KEY, never) == {"recall": 1.0}


def test_a_new_process_goes_on_where_the_old_one_was(tmp_path: Path) -> None:
    old = Journal(tmp_path / "journal.jsonl")
    old.once(KEY, lambda: {"recall": 1.0})
    old.note("chosen", lambda: {"index": 2})
    new = Journal(tmp_path / "journal.jsonl")
    assert new.once(KEY, never) == {"recall": 1.0}
    assert new.note("chosen", never) == {"index": 2}
    assert [record.key for record in new.of_seeds([KEY.seed])] == [KEY]


def test_a_line_cut_by_a_crash_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).once(KEY, lambda: {"recall": 1.0})
    path.write_text(path.read_text()[:-20])
    assert Journal(path).once(KEY, lambda: {"recall": 0.5}) == {"recall": 0.5}
    assert Journal(path).once(KEY, never) == {"recall": 0.5}


def test_a_failed_measurement_leaves_no_trace(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    with pytest.raises(AssertionError):
        journal.once(KEY, never)
    assert Journal(tmp_path / "journal.jsonl").records == {}


def test_progress_names_what_was_measured() -> None:
    lines: list[str] = []
    Journal(progress=lines.append).once(KEY, lambda: {"recall": 0.5})
    assert "bank sequence random n=10 seed 0: recall 0.5000" in lines[0]
