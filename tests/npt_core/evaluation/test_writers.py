from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from npt_core.bank import FactWeights
from npt_core.consolidation import FactError, WriteRequest
from npt_core.evaluation import Journal, evaluate, writing
from npt_core.evaluation.writers import Writers, kept
from npt_core.evaluation.writing import Scribe, drawn
from tests.npt_core.evaluation.bench import TINY, tiny_runtime
from tests.reference.conftest import REFERENCE


def test_the_stored_weights_are_those_returned(tmp_path: Path) -> None:
    path = tmp_path / "facts" / "0.safetensors"
    made = tiny_runtime().consolidator.consolidate(WriteRequest("Borduria is a country."))
    weights, metrics = kept(made, path)
    assert weights is not None
    assert metrics["accepted"] == 1.0
    stored = FactWeights.from_tensors(load_file(path)).to_tensors()
    assert all(stored[name].equal(tensor) for name, tensor in weights.to_tensors().items())


def test_a_refused_fact_stores_nothing(tmp_path: Path) -> None:
    path = tmp_path / "0.safetensors"
    with pytest.raises(FactError) as refused:
        tiny_runtime().consolidator.consolidate(WriteRequest("This is refused."))
    weights, metrics = kept(refused.value, path)
    assert weights is None
    assert metrics["accepted"] == 0.0
    assert not path.exists()


def test_several_processes_write_what_one_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "TIMED", 0)
    planned = drawn("random", 5, 3)
    journal = Journal()
    shared = Scribe(tiny_runtime().consolidator, journal, tmp_path, Writers(REFERENCE, 2))
    # The scribe's own writer, a tiny model's, is not asked: the processes load the reference model.
    learned = shared.written(planned)
    assert learned.weights
    assert {columns.keys.shape[1] for w in learned.weights.values() for columns in w.columns.values()} == {64}
    refused = [k for k, m in journal.records.items() if k.protocol == "fact" and not m["accepted"]]
    assert len(refused) == len(learned.refused)


def test_sizes_beyond_the_usual_are_measured_for_the_first_seed(tmp_path: Path) -> None:
    config = replace(TINY, counts=(1, 1002), one_fact=1, clustered=0, asked=3, baselines=None)
    results = evaluate(tiny_runtime(), config, Journal(), tmp_path / "facts")
    points = [(r.key.facts, r.key.seed) for r in results.records if r.key.protocol == "sequence"]
    assert sorted(points) == [(1, 0), (1, 1), (1002, 0)]
    assert not (tmp_path / "facts").exists()
