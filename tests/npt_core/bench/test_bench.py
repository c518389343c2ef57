"""All of it on a tiny checkpoint: every contender answers, or its row says why not."""

import importlib.util
import json
from pathlib import Path

import pytest

from npt_core.bench import bench, roofline
from npt_core.bench.bench import run_bench
from npt_core.bench.rows import (
    CONTINUOUS,
    GENERATE,
    LLAMA_CPP,
    LOOKUP,
    NPT,
    PLAIN,
    UNDRAFTED,
    WITHOUT,
    WRITING,
)
from tests.npt_core.tiny import calibrated, new_llama, new_npt, plain_template, tokenizer


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    model = new_npt()
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    calibrated(model, plain_template())[0].save(folder)
    return folder


def test_every_measurement_is_in_the_results(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_LEAST_WRITING_S", 0.1)
    monkeypatch.setitem(roofline._BIG, "cpu", 2**22)
    new_llama().save_pretrained(tmp_path / "teacher")
    told: list[str] = []
    table = run_bench(checkpoint, tmp_path, (1, 2), 0.01, tmp_path / "teacher", (0, 5), told.append)
    results = json.loads((tmp_path / "bench.json").read_text())
    loads = results["loads"]
    assert {name for name, rows in loads.items() if len(rows) == 1} == {UNDRAFTED, LOOKUP}
    both = {NPT, PLAIN, GENERATE, CONTINUOUS, LLAMA_CPP, WITHOUT, WRITING}
    assert {name for name, rows in loads.items() if [row["streams"] for row in rows] == [1, 2]} == both
    for name, row in ((name, row) for name, rows in loads.items() for row in rows):
        if name == LLAMA_CPP and not _installed("llama_cpp", "gguf"):
            assert row["failed"].startswith("not installed: ")
            continue
        assert row["tokens_per_s"] > 0, (name, row)
        assert row["first_token_p50_s"] > 0
        assert row["inter_token_p99_s"] > 0
    overhead = results["overhead"][-1]
    assert overhead["ratio_least"] <= overhead["ratio_p50"] <= overhead["ratio_most"]
    assert [line["columns_per_layer"] for line in results["columns"]] == [0, 5]
    writing = results["writing"][-1]
    assert writing["written"] + sum(writing["refused"].values()) == len(writing["write_s"]) >= 1
    undone = [(line["streams"], line["undone"]) for line in results["rollback"]]
    assert undone == [(1, 1), (1, 100), (2, 1), (2, 100)]
    for line in results["rollback"]:
        assert line["rollbacks"] >= 2
        assert 0 < line["pause_p50_s"] <= line["effective_p50_s"] <= line["effective_max_s"]
        assert line["effective_p50_s"] <= line["answered_p50_s"] <= line["answered_p99_s"]
    startup = results["startup"]
    assert 0 < startup["imports_s"] < startup["loaded_s"] < startup["first_token_s"]
    assert 0 < startup["idle_peak_bytes"] <= startup["peak_bytes"]
    assert [line["row"] for line in results["roofline"]["lines"]] == [NPT, PLAIN, LLAMA_CPP]
    assert f"The plain Llama: {tmp_path / 'teacher'}." in table
    assert f"{LLAMA_CPP}, 2 streams" in told


def test_a_part_is_measured_by_itself(checkpoint: Path, tmp_path: Path) -> None:
    run_bench(checkpoint, tmp_path, (1,), 0.01, parts=("overhead",))
    results = json.loads((tmp_path / "bench.json").read_text())
    assert results.keys() == {"conditions", "loads", "overhead"}
    assert results["loads"] == {}


def _installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) for package in packages)
