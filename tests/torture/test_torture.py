"""Short forms of `make torture`."""

from pathlib import Path

import pytest

from tests.programs import skip_or_fail
from torture import cuts, kill, points, space
from torture.history import Acknowledged, kinds, problems
from torture.mutants import MUTANTS, NONE, OF_FAILURES
from torture.process import WriterProcess, strace_missing


def test_nothing_acknowledged_is_lost_when_the_server_is_killed(tmp_path: Path) -> None:
    outcome = kill.run(tmp_path, rounds=3)
    assert outcome.problems == []
    # On a slow machine every kill may come before the first answer.
    assert outcome.acknowledged + outcome.unanswered > 0


def test_changes_survive_being_killed_at_any_call(tmp_path: Path) -> None:
    reason = strace_missing()
    if reason is not None:
        skip_or_fail(reason)
    outcome = points.kill_everywhere(tmp_path, changes=("retract", "collect"))
    assert outcome.problems == []
    assert min(outcome.points["retract"], outcome.points["collect"]) > 5


def test_what_is_learned_and_folded_survives_being_killed_where_order_matters(tmp_path: Path) -> None:
    reason = strace_missing()
    if reason is not None:
        skip_or_fail(reason)
    # All calls of a fact take a minute, those of a fold nearly as long: that is for the long form.
    outcome = points.kill_everywhere(tmp_path, changes=("fact", "fold"), calls=("rename", "fdatasync"))
    assert outcome.problems == []
    assert outcome.points == {"fact": 6, "fold": 6}


@pytest.mark.parametrize("mutant", list(OF_FAILURES))
def test_failed_sync_is_acknowledged_to_nobody_unless_a_bug_was_planted(tmp_path: Path, mutant: str) -> None:
    reason = strace_missing()
    if reason is not None:
        skip_or_fail(reason)
    outcome = points.fail_everywhere(tmp_path, changes=("fact",), calls=("fdatasync",), mutant=mutant)
    assert outcome.points["fact"] > 3
    assert kinds(outcome.problems) == (
        set() if mutant == NONE else {"acknowledged by one that writes no more"}
    )


def test_disk_without_room_refuses_and_goes_on_once_there_is_room(tmp_path: Path) -> None:
    reason = cuts.missing()
    if reason is not None:
        skip_or_fail(f"small file systems cannot be made here: {reason}")
    outcome = space.full(tmp_path, sizes=4)
    assert outcome.problems == []
    assert min(outcome.refused_to_start, outcome.refused) > 0
    over_http = space.full_over_http(tmp_path)
    assert over_http.problems == []
    assert over_http.acknowledged > 0


def test_disk_that_becomes_read_only_is_read_on(tmp_path: Path) -> None:
    reason = cuts.missing()
    if reason is not None:
        skip_or_fail(f"file systems cannot be made here: {reason}")
    outcome = space.read_only(tmp_path, rounds=2)
    assert outcome.problems == []
    assert outcome.refused == 2
    over_http = space.read_only_over_http(tmp_path)
    assert over_http.problems == []
    assert over_http.refused == 2


@pytest.mark.parametrize(
    ("file_system", "mutant", "rounds"),
    [("ext4", name, 25 if name == NONE else 60) for name in MUTANTS] + [("xfs", NONE, 10)],
)
def test_power_cuts_lose_nothing_unless_a_bug_was_planted(
    tmp_path: Path, file_system: str, mutant: str, rounds: int
) -> None:
    reason = cuts.missing()
    if reason is not None:
        skip_or_fail(f"power cuts cannot be played here: {reason}")
    outcome = cuts.run(tmp_path, rounds, file_system, mutant, first_bad=mutant != NONE)
    assert bool(outcome.problems) == (mutant != NONE), outcome.problems
    assert min(outcome.acknowledged, outcome.started) > 0 or mutant != NONE


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, list[Acknowledged]]:
    data = tmp_path / "data"
    writer = WriterProcess(data, NONE, "ask")
    made = []
    for change in ("fact", "retract", "batch"):
        writer.ask(change)
        made.append(Acknowledged.read(writer.line() or ""))
    writer.kill()
    return data, made


def test_sound_folder_has_no_problems(written: tuple[Path, list[Acknowledged]]) -> None:
    data, made = written
    assert problems(data, made) == []


def test_every_kind_of_loss_is_seen(written: tuple[Path, list[Acknowledged]]) -> None:
    data, made = written
    later = Acknowledged(made[-1].version + 1, "fact", "fact_0")
    assert kinds(problems(data, [*made, later])) == {"lost"}
    other = Acknowledged(made[0].version, "retract", made[0].fact)
    assert kinds(problems(data, [other])) == {"lost"}
    blob = next((data / "blobs").iterdir())
    blob.unlink()
    assert kinds(problems(data, made)) == {"half-applied"}
    (data / "ledger.db").write_bytes(b"\0" * 5000)
    assert kinds(problems(data, made)) == {"damaged"}
    (data / "ledger.db").unlink()
    assert kinds(problems(data, made)) == {"lost"}
