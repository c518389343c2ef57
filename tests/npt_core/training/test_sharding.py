"""A model that is trained in two processes, each of which holds a half, and one that is trained in one."""

import json
from pathlib import Path

import pytest

from npt_core.checkpoint import load_checkpoint
from npt_core.training.loop import latest_checkpoint, run
from npt_core.training.sharding import NotLaunched
from tests.npt_core.processes import launched
from tests.npt_core.training.shard_process import STEPS, loop, loss, rows


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def logged(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]


def test_two_halves_learn_what_one_whole_does(tmp_path: Path) -> None:
    """Over a break: losses, logs and weights are those of one process that takes two batches a step."""
    folders = [tmp_path / name for name in ("alone", "halves")]
    for folder in folders:
        folder.mkdir()
    alone = loss(0)
    run(alone, rows(), loop(folders[0], accumulate=2))
    arguments = ["-m", "tests.npt_core.training.shard_process", str(folders[1])]
    outputs = launched(arguments, tmp_path / "place")
    for output in outputs:
        student, teacher = map(float, output.splitlines()[-1].split())
        assert student < 0.6
        assert teacher < 0.8  # its head and norm are not computed, and stay whole
    expected, found = logged(folders[0]), logged(folders[1])
    assert [entry["step"] for entry in found] == [entry["step"] for entry in expected] == [10, STEPS]
    for one, other in zip(expected, found, strict=True):
        assert one["tokens"] == other["tokens"]
        for name in ("loss", "ce", "hidden", "modulation"):
            assert other[name] == pytest.approx(one[name], rel=1e-3)
    assert latest_checkpoint(folders[1]) == folders[1] / f"checkpoint-{STEPS}"
    saved, wanted = load_checkpoint(folders[1] / "model").state_dict(), alone.student.state_dict()
    start = loss(0).student.state_dict()
    for name, weight in wanted.items():
        moved = (weight - start[name]).norm()
        # Muon computes its steps in bfloat16. The gradient of `o_proj` has the rank of the adapter, and Muon
        # makes as much of what rounding adds to it as of the rest.
        share = 0.3 if "o_proj" in name else 0.03
        assert (saved[name] - weight).norm() < share * moved, name


def test_model_is_not_split_in_one_process(tmp_path: Path) -> None:
    with pytest.raises(NotLaunched, match="torchrun"):
        run(loss(0), rows(), loop(tmp_path, sharded=True))


def test_sharded_model_does_not_train_in_fp16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npt_core.training.loop.Accelerator", lambda **_: None)
    with pytest.raises(ValueError, match="bf16"):
        run(loss(0), rows(), loop(tmp_path, sharded=True, mixed_precision="fp16"))
