from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from npt_core.evaluation import Journal, Key, evaluate
from npt_core.evaluation.evaluate import Results
from npt_core.evaluation.facts import identity
from npt_core.evaluation.reports import as_markdown, as_text, write_reports
from npt_core.evaluation.reports.summary import capacities, rows
from npt_core.evaluation.workbench import Workbench
from npt_core.evaluation.writing import Scribe, drawn
from tests.npt_core.evaluation.bench import TINY, QuickWriter, tiny_runtime


@pytest.fixture(scope="module")
def results() -> Results:
    return evaluate(tiny_runtime(), TINY)


def metrics(results: Results, **wanted: object) -> dict[str, float]:
    found = [
        r.metrics
        for r in results.records
        if all(getattr(r.key, name) == value for name, value in wanted.items())
    ]
    assert found, wanted
    return found[0]


@pytest.mark.timeout(600)
def test_both_tiers_are_measured_at_every_size_order_and_seed(results: Results) -> None:
    keys = {(r.key.method, r.key.protocol, r.key.order, r.key.facts, r.key.seed) for r in results.records}
    for order in ("random", "clustered"):
        for seed in (0, 1):
            for n in (1, 3):
                assert ("bank", "sequence", order, n, seed) in keys
                assert ("bank", "at once", order, n, seed) in keys
                assert ("fold", "at once", order, n, seed) in keys
                assert ("fold, rank 1", "at once", order, n, seed) in keys


def test_every_point_has_recall_locality_and_drift(results: Results) -> None:
    point = metrics(results, method="bank", protocol="sequence", facts=3)
    for name in ("recall", "paraphrase", "locality", "kl", "perplexity", "retention", "immediate"):
        assert name in point


def test_the_order_of_publication_does_not_matter(results: Results) -> None:
    assert metrics(results, method="bank", protocol="at once", facts=3)["same_as_sequence"] == 1.0


def test_taking_facts_back_is_exact(results: Results) -> None:
    bank = metrics(results, method="bank", protocol="rollback")
    for name in ("rollback_exact", "retract_exact", "pinned_exact", "facts_change_logits"):
        assert bank[name] == 1.0
    fold = metrics(results, method="fold", protocol="rollback")
    assert fold == {"order_exact": 1.0, "retract_exact": 1.0}


def test_baselines_are_measured_on_the_same_facts(results: Results) -> None:
    methods = {r.key.method for r in results.records if r.key.protocol == "sequence"}
    assert {"in-context", "ridge, no bank", "fine-tuning", "ROME", "MEMIT"} <= methods
    assert {f"modulation, {p}" for p in ("factual_recall", "reasoning", "creative")} <= methods
    assert results.notes["chosen: ROME"]["chosen"].startswith("Rome(")


def test_the_capacity_of_folding_is_a_number_tried(results: Results) -> None:
    for found in capacities(results.records, TINY.capacity):
        assert found.facts in (0, 1, 3)


def test_the_served_model_stays_as_it_was() -> None:
    runtime = tiny_runtime()
    before = {k: v.clone() for k, v in runtime.model.state_dict().items()}
    small = replace(TINY, counts=(1,), seeds=(0,), clustered=0, baselines=None)
    evaluate(runtime, small)
    assert runtime.bank.version == 0
    for name, tensor in runtime.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    small = replace(TINY, counts=(1, 2), seeds=(0,), one_fact=2, clustered=0, baselines=None)
    whole = evaluate(tiny_runtime(), small, Journal(tmp_path / "j"), tmp_path / "facts")
    lines = (tmp_path / "j").read_text().splitlines()
    (tmp_path / "j").write_text("\n".join(lines[: len(lines) // 2]) + "\n")
    again = evaluate(tiny_runtime(), small, Journal(tmp_path / "j"), tmp_path / "facts")
    measured = lambda r: {x.key: x.metrics for x in r.records if x.key.protocol == "sequence"}  # noqa: E731
    assert measured(again) == measured(whole)


def test_facts_written_before_the_stop_are_not_written_again(tmp_path: Path) -> None:
    runtime = tiny_runtime()
    writer = runtime.consolidator
    assert isinstance(writer, QuickWriter)
    planned = drawn("random", 0, 2)
    first = Scribe(writer, Journal(tmp_path / "j"), tmp_path / "facts").written(planned)
    second = Scribe(writer, Journal(tmp_path / "j"), tmp_path / "facts").written(planned)
    assert writer.written == 2
    for number, weights in first.weights.items():
        for name, tensor in weights.to_tensors().items():
            assert torch.equal(second.weights[number].to_tensors()[name], tensor)


def test_a_refused_fact_has_no_weights_and_is_reported() -> None:
    journal = Journal()
    planned = replace(drawn("random", 0, 2), statements=["This is fine.", "This is refused."])
    done = Scribe(tiny_runtime().consolidator, journal, None).written(planned)
    assert done.refused == {1}
    assert list(done.births(0, 2)) == ["000000"]
    assert journal.records[Key("write", "summary", "random", 2, 0)]["refused"] == 0.5


def test_reports_hold_every_table(results: Results, tmp_path: Path) -> None:
    table = write_reports(results, tmp_path, "npt eval facts --quick")
    page = (tmp_path / "evaluation.md").read_text()
    for title in ("One fact", "Second tier: folded weights", "Capacity of folding", "Baselines"):
        assert title in table
        assert title in page
    assert "npt eval facts --quick" in page
    assert (tmp_path / "evaluation.png").read_bytes()[:4] == b"\x89PNG"
    stored = json.loads((tmp_path / "results.json").read_text())
    assert len(stored["records"]) == len(results.records)


def test_seeds_become_intervals(results: Results) -> None:
    (row,) = rows(
        results.records,
        lambda k: k.method == "bank" and k.protocol == "one fact" and k.order == "random",
    )
    assert row.metrics["recall"].count == 2
    assert "±" in as_text(results)


def test_a_page_without_baselines_has_no_word_about_them(results: Results) -> None:
    ours = [r for r in results.records if r.key.method in ("bank", "write")]
    assert "Baselines" not in as_markdown(replace(results, records=ours, notes={}))


def test_another_configuration_is_another_run() -> None:
    assert identity("a", "{}", TINY) == identity("a", "{}", TINY)
    assert identity("a", "{}", TINY) != identity("a", "{}", replace(TINY, counts=(2,)))
    assert identity("a", "{}", TINY) != identity("b", "{}", TINY)
    assert identity("a", "{}", TINY) == identity("a", "{}", replace(TINY, seeds=(5, 6)))


def test_the_private_models_are_not_the_served_one() -> None:
    runtime = tiny_runtime()
    bench = Workbench.of(runtime, TINY)
    assert bench.model is not runtime.model
    assert bench.examiner.base.model is not bench.model
