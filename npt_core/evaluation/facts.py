"""`npt eval facts`: loads a checkpoint, measures it, writes the report."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from tqdm import tqdm

from npt_core.checkpoint import resolve_folder
from npt_core.evaluation.config import EvaluationConfig
from npt_core.evaluation.evaluate import evaluate
from npt_core.evaluation.journal import Journal
from npt_core.evaluation.reports import write_reports
from npt_core.evaluation.writers import Writers
from npt_core.loading import load_runtime


def run_facts_evaluation(
    model_dir: str | Path,
    out_dir: Path,
    counts: Sequence[int] = (1, 10, 100, 1000),
    seeds: Sequence[int] = (0, 1, 2),
    quick: bool = False,
    data: Path | None = None,
    processes: int = 1,
) -> str:
    """Measures `model_dir`, writes the report to `out_dir`, and returns the table.

    `quick` overrides `counts` and `seeds`. With several `processes`, all but the first facts are written
    by as many at once, in batches. Called again with the same arguments, it goes on where it was stopped.
    Raises CheckpointError, and ValueError for counts or seeds that mean nothing.
    """
    if quick:
        config = EvaluationConfig.quick(data)
    else:
        config = replace(EvaluationConfig(counts=(1,)), counts=tuple(counts), seeds=tuple(seeds), data=data)
    runtime = load_runtime(model_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    run = identity(runtime.fingerprint, json.dumps(asdict(runtime.consolidator.config)), config)
    journal = Journal(out_dir / f"journal-{run}.jsonl", progress=_told)
    writers = Writers(resolve_folder(model_dir), processes) if processes > 1 else None
    results = evaluate(runtime, config, journal, out_dir / f"facts-{run}", writers)
    return write_reports(results, out_dir)


def identity(fingerprint: str, plasticity: str, config: EvaluationConfig) -> str:
    """Names a run: another checkpoint, way of writing or configuration gets files of its own.

    Seeds are no part of it: more of them can be measured later.
    """
    sizes = {name: value for name, value in asdict(config).items() if name != "seeds"}
    text = fingerprint + plasticity + json.dumps(sizes, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _told(line: str) -> None:
    tqdm.write(line, file=sys.stderr)
