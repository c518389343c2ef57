"""The same load without and with a writer beside it."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from npt_core.bench.figures import Rounds
from npt_core.bench.load import load_of, running
from npt_core.bench.writers import Writer
from npt_core.engine import alone, passes_for
from npt_core.loading import load_runtime
from npt_core.placement import Device, DType

TURNS = 7


def measure_interference(
    model: Path, cache: Path, device: Device, dtype: DType, streams: int, seconds: float
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Figures without a writer, figures beside one, and what it wrote; by turns of `seconds` each, so that
    what else the machine does meanwhile falls on both. What it wrote comes with how many times as long it
    made the slowest hundredth of tokens wait, by turn.

    The model is loaded anew: every number of streams begins with an empty bank.
    """
    runtime = alone(load_runtime, model, device=device, dtype=dtype, cache=cache)
    vocabulary = runtime.model.config.vocab_size
    with running(runtime.model, runtime.bank, streams) as engine:
        runtime.consolidator.give_way(engine.pause, passes_for(engine.runner, engine.pause))
        writer = Writer(runtime, engine)
        without, beside = (load_of(engine, streams, vocabulary, seed) for seed in (0, 1_000_000))
        turns = [_turn(without, beside, writer, seconds) for _ in range(TURNS)]
    done, refused = writer.outcome, {"refused": writer.outcome.refused}
    outcome = written(streams, done.written, refused, done.seconds, done.publications)
    return asdict(without.figures), asdict(beside.figures), outcome | {"waits": turns}


def _turn(without: Rounds, beside: Rounds, writer: Writer, seconds: float) -> float:
    before = without.go_on(seconds)
    with writer:
        after = beside.go_on(seconds, writer.finishing)
    assert before.inter_token_p99_s is not None  # no answer has less than two tokens
    assert after.inter_token_p99_s is not None
    return after.inter_token_p99_s / before.inter_token_p99_s


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
