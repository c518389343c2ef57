"""Facts written by several processes at once, each with one thread and a model of its own.

A fact's weights do not depend on other facts, so they may be written in any order, by anyone.
"""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from npt_core.bank import FactWeights
from npt_core.consolidation import (
    Consolidated,
    ConsolidationError,
    Consolidator,
    FactError,
    UnreadableFact,
    WriteRequest,
)
from npt_core.evaluation.journal import Metrics
from npt_core.loading import load_runtime

STAGES = ("study", "write", "verify")
BATCH = 16
"""Facts that a process studies together."""
Job = tuple[str, int, Path]
"""A sentence, its number, and where its weights go."""

_own: list[Consolidator] = []
"""Of a process that writes; filled when it starts."""


@dataclass(frozen=True)
class Writers:
    """So many processes, which load the checkpoint `model`."""

    model: Path
    processes: int

    def write(self, jobs: Sequence[Job]) -> Iterator[Metrics]:
        """What became of each job, in order; the weights of a fact that was not refused are stored."""
        if not jobs:
            return
        with ProcessPoolExecutor(
            self.processes, multiprocessing.get_context("spawn"), _prepare, (self.model,)
        ) as pool:
            batches = [jobs[start : start + BATCH] for start in range(0, len(jobs), BATCH)]
            for done in pool.map(_write, batches):
                yield from done


def _prepare(model: Path) -> None:
    torch.set_num_threads(1)
    _own.append(load_runtime(model).consolidator)


def _write(jobs: Sequence[Job]) -> list[Metrics]:
    outcomes = _own[0].consolidate_all(
        [WriteRequest(statement, seed=number) for statement, number, _ in jobs]
    )
    return [kept(outcome, path)[1] for outcome, (_, _, path) in zip(outcomes, jobs, strict=True)]


def kept(outcome: Consolidated | ConsolidationError, path: Path | None) -> tuple[FactWeights | None, Metrics]:
    """The weights of a fact, stored in `path` too, or None where it was refused; and what it took."""
    weights = None
    if isinstance(outcome, Consolidated):
        report, weights = outcome.report, outcome.weights
    elif isinstance(outcome, FactError):
        report = outcome.report
    else:
        raise outcome
    if weights is not None and path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights.to_tensors(), path)
    return weights, {
        "accepted": float(weights is not None),
        "unreadable": float(isinstance(outcome, UnreadableFact)),
        **{name: report.timings.get(name, 0.0) for name in STAGES},
        "columns": report.columns,
        "bytes": report.bytes,
        "attempts": report.attempts,
    }
