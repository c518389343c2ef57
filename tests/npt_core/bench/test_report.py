import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from npt_core.bench.figures import Figures, Timeline
from npt_core.bench.interference import written
from npt_core.bench.report import save, table

FIGURES = asdict(Figures.of(4, [Timeline(0.0, [0.01, 0.015])], wall_s=0.5))


def results(**sections: Any) -> dict[str, Any]:
    return {"loads": {"npt engine": [FIGURES]}, **sections}


def test_latencies_are_in_milliseconds() -> None:
    assert "| npt engine | 4 | 4 | 10.0 / 10.0 / 10.0 | 5.0 / 5.0 / 5.0 |" in table(results())


def test_peer_that_failed_or_is_missing_is_told_in_the_table() -> None:
    rows = [{"streams": 4, "failed": "no"}, {"streams": 16, "failed": "not installed: llama_cpp"}]
    text = table({"loads": {"peer": rows}})
    assert "| peer | 4 | failed: no | - | - |" in text
    assert "| peer | 16 | not installed: llama_cpp | - | - |" in text


def test_errors_of_a_server_are_counted_by_reason() -> None:
    found = {"server": [FIGURES | {"errors": {"503 npt:overloaded": 3}}, FIGURES | {"errors": {}}]}
    lines = table({"loads": found}).splitlines()
    assert lines[0].endswith("| errors |")
    assert lines[2].endswith("| 3 x 503 npt:overloaded |")
    assert lines[3].endswith("| 0 |")


def test_facts_that_landed_are_told_with_their_times() -> None:
    found = written(4, 2, {"422 npt:fact-unreadable": 1}, [0.5, 0.7, 1.5], [0.001, 0.003])
    text = table(results(writing=[found]))
    assert "| 4 | 2 | 1 x 422 npt:fact-unreadable | 0.70, 1.50 | 2.00, 3.00 |" in text


def test_facts_without_a_publication_have_no_pause() -> None:
    assert "| 1 | 0 | 0 | -, - | -, - |" in table(results(writing=[written(1, 0, {}, [])]))


def test_rollbacks_are_told_by_what_they_take_back() -> None:
    times = {"effective_p50_s": 0.002, "effective_p99_s": 0.004, "effective_max_s": 0.005}
    times |= {"answered_p50_s": 0.0025, "answered_p99_s": 0.006}
    line = {"streams": 4, "undone": 100, "rollbacks": 7, "pause_p50_s": 0.001, "pause_max_s": 0.003, **times}
    assert "| 4 | 100 | 7 | 2.00 / 4.00 / 5.00 | 2.50, 6.00 | 1.00, 3.00 |" in table(results(rollback=[line]))


def test_bound_of_memory_stands_beside_what_was_reached() -> None:
    line = {
        "row": "npt engine",
        "bytes_per_token": 40_000_000,
        "bound_tokens_per_s": 400.0,
        "bound_resident_tokens_per_s": 1000.0,
        "reached_tokens_per_s": 300.0,
        "share": 0.75,
    }
    missing = line | {"row": "llama.cpp", "reached_tokens_per_s": None, "share": None}
    bandwidth = {"memory": 16e9, "resident": 40e9}
    text = table(results(roofline={"streams": 1, "bandwidth": bandwidth, "lines": [line, missing]}))
    assert "memory gives 16.0 GB/s" in text
    assert "| npt engine | 40.0 | 400 (1000) | 300 | 75% |" in text
    assert "| llama.cpp | 40.0 | 400 (1000) | - | - |" in text


def test_results_are_saved_as_json_table_and_picture(tmp_path: Path) -> None:
    failed = {"loads": {"npt engine": [FIGURES], "peer": [{"streams": 4, "failed": "no"}]}}
    assert save(failed, tmp_path / "out") == (tmp_path / "out" / "bench.md").read_text()
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == failed
    assert (tmp_path / "out" / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_picture_of_nothing_is_no_failure(tmp_path: Path) -> None:
    save({"loads": {"peer": [{"streams": 4, "failed": "no"}]}}, tmp_path)
