"""The same load without and with a writer beside it."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from npt_core.bench.load import measure, running
from npt_core.bench.writers import Writer
from npt_core.engine import alone
from npt_core.loading import load_runtime
from npt_core.placement import Device, DType


def measure_interference(
    model: Path, cache: Path, device: Device, dtype: DType, streams: int, seconds: float
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Figures before the writer starts, figures beside it, and what it wrote.

    The model is loaded anew: every number of streams begins with an empty bank.
    """
    runtime = alone(load_runtime, model, device=device, dtype=dtype, cache=cache)
    vocabulary = runtime.model.config.vocab_size
    with running(runtime.model, runtime.bank, streams) as engine:
        before = measure(engine, streams, vocabulary, seconds)
        runtime.consolidator.give_way(engine.pause)
        with Writer(runtime, engine) as writer:
            during = measure(engine, streams, vocabulary, seconds)
    done = writer.outcome
    return (
        asdict(before),
        asdict(during),
        written(streams, done.written, {"refused": done.refused}, done.seconds, done.publications),
    )


def written(
    streams: int,
    count: int,
    refused: dict[str, int],
    seconds: Sequence[float],
    publications: Sequence[float] = (),
) -> dict[str, Any]:
    """What was written beside `streams` streams: how many facts, and how long each took.

    `publications`: seconds during which the bank changed.
    """
    return {
        "streams": streams,
        "written": count,
        "refused": {reason: number for reason, number in refused.items() if number},
        "write_p50_s": statistics.median(seconds) if seconds else None,
        "write_max_s": max(seconds, default=None),
        "publication_p50_s": statistics.median(publications) if publications else None,
        "publication_max_s": max(publications, default=None),
        "write_s": list(seconds),
        "publication_s": list(publications),
    }
