"""`evaluate`: every protocol, both tiers and the baselines, on one checkpoint."""

import os
import platform
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from npt_core.evaluation.banked import at_once, ceiling, one_fact, rollback, sequence
from npt_core.evaluation.baselines import compare_baselines
from npt_core.evaluation.config import EvaluationConfig
from npt_core.evaluation.folding import capacity, fold_exactness, folded
from npt_core.evaluation.journal import Journal, Key, Record
from npt_core.evaluation.workbench import Workbench
from npt_core.evaluation.writers import Writers
from npt_core.evaluation.writing import FactSet, Scribe, drawn
from npt_core.loading import Runtime

ROLLBACK_FACTS = 100


@dataclass(frozen=True)
class Results:
    """Everything measured. `about` describes checkpoint, machine and texts, in JSON values."""

    config: EvaluationConfig
    about: dict[str, Any]
    records: list[Record]
    notes: dict[str, Any] = field(default_factory=dict)


def evaluate(
    runtime: Runtime,
    config: EvaluationConfig,
    journal: Journal | None = None,
    folder: Path | None = None,
    writers: Writers | None = None,
) -> Results:
    """Measures `runtime`, whose model and bank stay as they are.

    `journal` and `folder` (for the weights of facts) let a stopped run go on. They belong to one
    checkpoint and one configuration. `writers` write facts in processes of their own.
    """
    kept = journal or Journal()
    bench = Workbench.of(runtime, config)
    about = kept.note("about", lambda: _about(runtime, bench))
    begin = time.perf_counter()
    scribe = Scribe(bench.consolidator, kept, folder, writers)
    for seed in config.seeds:
        done = Key("run", "seed", seed=seed)
        if done not in kept.records:
            _one_seed(bench, kept, seed, scribe)
            kept.once(done, lambda: {"seconds": time.perf_counter() - begin})
    if config.large_counts:
        learned = scribe.written(drawn("random", config.seeds[0], config.counts[-1]))
        sequence(bench, kept, learned, config.large_counts)
    if config.baselines is not None:  # last, because they take longest
        for seed in config.seeds[: config.baselines.seeds]:
            learned = scribe.written(drawn("random", seed, config.facts))
            compare_baselines(bench, kept, learned, config.baselines)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    return Results(config, about, kept.of_seeds(config.seeds), kept.notes)


def _one_seed(bench: Workbench, journal: Journal, seed: int, scribe: Scribe) -> None:
    config = bench.config
    learned = scribe.written(drawn("random", seed, config.facts))
    ceiling(bench, journal, learned)
    one_fact(bench, journal, learned)
    _both_tiers(bench, journal, learned, config.usual_counts)
    if config.clustered_counts:
        count = config.clustered_counts[-1]
        clustered = scribe.written(drawn("clustered", seed, count))
        ceiling(bench, journal, clustered)
        _both_tiers(bench, journal, clustered, config.clustered_counts)
    if seed == config.seeds[0]:
        capacity(bench, journal, learned)


def _both_tiers(bench: Workbench, journal: Journal, learned: FactSet, counts: tuple[int, ...]) -> None:
    sequence(bench, journal, learned, counts)
    at_once(bench, journal, learned, counts)
    folded(bench, journal, learned, counts)
    few = min(counts[-1], ROLLBACK_FACTS)
    rollback(bench, journal, learned, few)
    fold_exactness(bench, journal, learned, few)


def _about(runtime: Runtime, bench: Workbench) -> dict[str, Any]:
    model = runtime.model
    return {
        "fingerprint": runtime.fingerprint,
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": runtime.num_layers,
        "d_model": model.config.hidden_size,
        "d_ffn": model.config.intermediate_size,
        "npt_layers": dict(model.config.npt_layers),
        "plastic_layers": list(bench.calibration.config.layers),
        "fold_lambda": bench.calibration.config.fold_lambda,
        "texts": {
            name: {"tokens": text.tokens, "perplexity": text.base_perplexity()}
            for name, text in bench.texts.items()
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
