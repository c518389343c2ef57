"""Chooses how facts are written, by measuring on a development split that no evaluation uses.

Coordinate descent: each parameter in turn takes the value with the best score, the others kept. The
score is the mean of recall and paraphrase, less what locality and perplexity lose against their limits.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from npt_core.bank import Bank
from npt_core.consolidation import Calibration, Consolidator, PlasticityConfig
from npt_core.consolidation.calibration import CONFIG_FILE
from npt_core.consolidation.states import plastic
from npt_core.evaluation.config import EvaluationConfig
from npt_core.evaluation.exam import exam
from npt_core.evaluation.journal import Journal
from npt_core.evaluation.workbench import Workbench
from npt_core.evaluation.writing import Scribe, drawn
from npt_core.loading import load_runtime

DEVELOPMENT_SEED = 9_001
"""No evaluation uses it."""
LOCALITY_LIMIT, PERPLEXITY_LIMIT = 0.995, 0.003


def grid(calibration: Calibration) -> dict[str, list[Any]]:
    """The values tried for each parameter."""
    measured = tuple(sorted(calibration.layers))
    return {
        "layers": [measured[i:] for i in range(len(measured))],
        "threshold": [0.65, 0.75, 0.85, 0.9],
        "margin": [0.02, 0.05, 0.1],
        "merge": [0.9, 0.95],
        "questions": [4, 5, 6, 10],
    }


def tune(model: Path, facts: int, out: Path, write: bool) -> str:
    """The chosen parameters as JSON; every trial goes to `out` as a line. `write` stores them."""
    runtime = load_runtime(model)
    bench = Workbench.of(runtime, EvaluationConfig(counts=(facts,), seeds=(0,), one_fact=facts))
    best, calibration = bench.calibration.config, bench.calibration
    scores: dict[str, float] = {}
    out.parent.mkdir(parents=True, exist_ok=True)
    for name, values in grid(calibration).items():
        for value in values:
            trial = replace(best, **{name: value})
            if str(trial) not in scores:
                found = _measured(bench, trial, facts)
                scores[str(trial)] = found["score"]
                with out.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps({**_changed(trial), **found}) + "\n")
            if scores[str(trial)] > scores.get(str(best), float("-inf")):
                best = trial
    if write:
        best.save(model / CONFIG_FILE)
    return json.dumps(_changed(best) | {"score": scores[str(best)]}, indent=2)


def score(found: Mapping[str, float]) -> float:
    """Higher is better; a broken limit costs ten times what it is broken by."""
    broken = max(0.0, LOCALITY_LIMIT - found["locality"])
    broken += max(0.0, found["perplexity"] - PERPLEXITY_LIMIT)
    return (found["recall"] + found["paraphrase"]) / 2 - 10 * broken


def _measured(bench: Workbench, config: PlasticityConfig, count: int) -> dict[str, float]:
    calibration = bench.calibration.with_config(config)
    consolidator = Consolidator(bench.consolidator.model, bench.template, calibration)
    journal = Journal()
    begin = time.perf_counter()
    learned = Scribe(consolidator, journal, None).written(drawn("random", DEVELOPMENT_SEED, count))
    seconds = (time.perf_counter() - begin) / count
    bank = Bank(bench.model, calibration.whitening)
    bank.publish(1, learned.births(0, count))
    paper = exam(learned.facts, bench.template, count, learned.name)
    with plastic(bench.model, bank.layers):
        found = bench.examined(paper, learned.refused, 1)
    kept = {k: found[k] for k in ("recall", "paraphrase", "locality", "perplexity")}
    columns = bank.num_columns() / count
    refused = len(learned.refused) / count
    return {
        **kept,
        "score": score(found),
        "seconds": seconds,
        "columns": columns,
        "refused": refused,
    }


def _changed(config: PlasticityConfig) -> dict[str, Any]:
    names = ("layers", "threshold", "margin", "merge", "questions")
    return {name: getattr(config, name) for name in names}
