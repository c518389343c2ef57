"""All measurements of one machine in one run, so that their ratios mean something."""

import json
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from npt_core.bench.columns import measure_columns
from npt_core.bench.load import Figures, measure
from npt_core.bench.peers import measure_continuous, measure_generate
from npt_core.bench.report import table
from npt_core.bench.writers import Writer
from npt_core.engine import Engine
from npt_core.loading import Runtime, load_runtime


def run_bench(
    model: Path,
    out: Path,
    streams: Sequence[int],
    seconds: float,
    columns: Sequence[int] = (0, 1000, 10000, 100000),
) -> str:
    """Measures, writes `bench.json` and `bench.md` into `out`, and returns the table."""
    begin = time.perf_counter()
    runtime = load_runtime(model)
    loaded = time.perf_counter() - begin
    loads = _loads(runtime, streams, seconds)
    results: dict[str, Any] = {
        "conditions": _conditions(loaded),
        "loads": loads,
        "columns": measure_columns(runtime, columns, 16, seconds),
        "writing": _with_writer(runtime, loads, max(2 * seconds, 5.0)),
        "memory_peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "bench.md").write_text(table(results))
    return table(results)


def _conditions(loaded: float) -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "load_average_before": os.getloadavg()[0],
        "start_up_s": loaded,
    }


def _loads(runtime: Runtime, streams: Sequence[int], seconds: float) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {
        "npt engine": [],
        "transformers generate": [],
        "transformers continuous batching": [],
    }
    model: Any = runtime.model
    vocabulary = model.config.vocab_size
    for count in streams:
        engine = Engine(runtime.runner(1024), runtime.bank, ())
        measure(engine, count, vocabulary, 0.0, seed=10**6)  # warm
        found["npt engine"].append(asdict(measure(engine, count, vocabulary, seconds)))
        engine.close()
        for name, peer in (
            ("transformers generate", measure_generate),
            ("transformers continuous batching", measure_continuous),
        ):
            found[name].append(_attempt(peer, model, count, seconds))
    return found


def _attempt(
    peer: Callable[[Any, int, float], Figures], model: Any, count: int, seconds: float
) -> dict[str, Any]:
    try:
        return asdict(peer(model, count, seconds))
    except Exception as error:  # a peer that cannot run is a result, too
        return {"streams": count, "failed": f"{type(error).__name__}: {str(error)[:100]}"}


def _with_writer(
    runtime: Runtime, loads: dict[str, list[dict[str, Any]]], seconds: float, streams: int = 16
) -> dict[str, Any]:
    """The same load without and with a fact every second, one right after the other."""
    engine = Engine(runtime.runner(1024), runtime.bank, ())
    vocabulary = runtime.model.config.vocab_size
    without = measure(engine, streams, vocabulary, seconds)
    runtime.consolidator.give_way(engine.pause)
    with Writer(runtime, engine) as writer:
        during = measure(engine, streams, vocabulary, seconds)
    engine.close()
    loads["npt engine, before the writer starts"] = [asdict(without)]
    loads["npt engine, a fact every second"] = [asdict(during)]
    return asdict(writer.outcome)
