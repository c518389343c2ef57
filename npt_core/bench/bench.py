"""All measurements of one machine in one run, so that their ratios mean something."""

import logging
import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers

from npt_core.bank import Bank
from npt_core.bench.columns import measure_columns
from npt_core.bench.figures import Figures
from npt_core.bench.gguf_export import UnsupportedTokenizer, export_gguf
from npt_core.bench.interference import measure_interference
from npt_core.bench.load import measure, running
from npt_core.bench.overhead import measure_overhead
from npt_core.bench.peers import measure_continuous, measure_generate, measure_llama_cpp
from npt_core.bench.plain import load_teacher, without_adapters
from npt_core.bench.report import save
from npt_core.bench.rollback import measure_rollback
from npt_core.bench.roofline import measure_roofline
from npt_core.bench.rows import (
    CONTINUOUS,
    GENERATE,
    LLAMA_CPP,
    LOOKUP,
    NPT,
    PLAIN,
    UNDRAFTED,
    WITHOUT,
    WRITING,
)
from npt_core.bench.startup import measure_startup
from npt_core.convert import convert_npt_to_llama
from npt_core.engine import alone
from npt_core.engine.kernels import library_for
from npt_core.loading import Runtime, load_runtime
from npt_core.model import NPTForCausalLM
from npt_core.placement import Device, DType

Loads = dict[str, list[dict[str, Any]]]
Contender = Callable[[int], Figures]
Tell = Callable[[str], None]

log = logging.getLogger(__name__)

_COLUMN_STREAMS = 16
_LOOKUP_TOKENS = 10
"""What transformers' documentation takes for prompt lookup."""
_ONE_STREAM = frozenset({UNDRAFTED, LOOKUP})
"""Contenders that differ from others at one stream alone, or take no more."""
_UNDONE = (1, 100)
"""Facts that a rollback takes back, of 1,000."""
_LEAST_WRITING_S = 5.0
"""A few facts should land, at one a second."""
PARTS = ("startup", "peers", "overhead", "columns", "rollback", "writing")
"""What can be measured by itself; the roofline comes with the peers."""


def run_bench(
    model: Path,
    out: Path,
    streams: Sequence[int],
    seconds: float,
    teacher: Path | None = None,
    columns: Sequence[int] = (0, 1000, 10000, 100000),
    tell: Tell = log.info,
    device: Device = "auto",
    dtype: DType = "auto",
    parts: Collection[str] = PARTS,
) -> str:
    """Measures, writes `bench.json`, `bench.md` and `bench.png` into `out`, and returns the table.

    `tell` hears what is measured next, which is `parts` of all `PARTS`.

    Raises:
        CheckpointError: `model` or `teacher` cannot be loaded.
        ValueError: `teacher` is no plain Llama of the model's sizes.
        Unplaceable: `device` or `dtype` cannot be had.
    """
    with tempfile.TemporaryDirectory(prefix="npt-bench-") as name:
        scratch = Path(name)
        runtime = alone(load_runtime, model, device=device, dtype=dtype, cache=scratch)
        if teacher is None:
            plain = alone(without_adapters, runtime.model)
        else:
            plain = alone(load_teacher, teacher, runtime.model)
        results: dict[str, Any] = {"conditions": _conditions(model, teacher, runtime)}
        loads: Loads = {}
        results["loads"] = loads
        if "startup" in parts:
            tell("start-up")
            results["startup"] = measure_startup(model, scratch, max(streams), device, dtype)
        if "peers" in parts:
            contenders = _contenders(runtime, plain, scratch / "plain.gguf", seconds)
            loads |= _loads(contenders, streams, tell)
            tell("memory bandwidth")
            models = {NPT: runtime.model, PLAIN: plain, LLAMA_CPP: plain}
            models = {name: served for name, served in models.items() if name in loads}
            results["roofline"] = alone(measure_roofline, models, loads, min(streams))
        if "overhead" in parts:
            results["overhead"] = _overhead(runtime, plain, streams, seconds, tell)
        if "columns" in parts:
            results["columns"] = _columns(runtime, columns, seconds, tell)
        if "rollback" in parts:
            results["rollback"] = _rollbacks(runtime, streams, seconds, tell)
        if "writing" in parts:
            interfered = partial(measure_interference, model, scratch, device, dtype)
            results["writing"] = _writing(interfered, loads, streams, max(seconds, _LEAST_WRITING_S), tell)
    return save(results, out)


def _conditions(model: Path, teacher: Path | None, runtime: Runtime) -> dict[str, Any]:
    device, kernels = runtime.model.device, library_for(runtime.model)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": str(runtime.model.dtype).removeprefix("torch."),
        "model": str(model),
        "plain_llama": "the model without its adapters" if teacher is None else str(teacher),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "kernels": "torch's" if kernels is None else f"compiled, {kernels.unit}",
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "load_average_before": os.getloadavg()[0],
    }


def _contenders(runtime: Runtime, plain: NPTForCausalLM, gguf: Path, seconds: float) -> dict[str, Contender]:
    """Who takes part, as what measures them at a number of streams."""
    model = runtime.model

    def engine(served: NPTForCausalLM, bank: Bank, count: int, drafts: bool = True) -> Figures:
        with running(served, bank, count, drafts) as started:
            return measure(started, count, model.config.vocab_size, seconds)

    def llama_cpp(count: int) -> Figures:
        if not gguf.exists():
            _export(plain, runtime.tokenizer, gguf)
        return measure_llama_cpp(gguf, model.config.vocab_size, count, seconds)

    contenders: dict[str, Contender] = {
        NPT: partial(engine, model, runtime.bank),
        UNDRAFTED: partial(engine, model, runtime.bank, drafts=False),
        PLAIN: partial(engine, plain, Bank(plain, {})),
        GENERATE: lambda count: alone(measure_generate, model, count, seconds),
        LOOKUP: lambda count: alone(measure_generate, model, count, seconds, _LOOKUP_TOKENS),
        CONTINUOUS: lambda count: alone(measure_continuous, model, count, seconds),
    }
    # The wheel of llama.cpp computes on the CPU, where this model is not.
    if model.device.type == "cpu":
        contenders[LLAMA_CPP] = lambda count: alone(llama_cpp, count)
    return contenders


def _export(plain: NPTForCausalLM, tokenizer: Any, path: Path) -> None:
    """The load is token ids, so a tokenizer that llama.cpp does not have is left out."""
    llama = convert_npt_to_llama(plain)
    try:
        export_gguf(llama, path, tokenizer)
    except UnsupportedTokenizer:
        export_gguf(llama, path)


def _loads(contenders: Mapping[str, Contender], streams: Sequence[int], tell: Tell) -> Loads:
    found: Loads = {name: [] for name in contenders}
    for count in streams:
        for name, contender in contenders.items():
            if count == 1 or name not in _ONE_STREAM:
                tell(f"{name}, {count} streams")
                found[name].append(_attempt(contender, count))
    return found


def _attempt(contender: Contender, count: int) -> dict[str, Any]:
    try:
        return asdict(contender(count))
    except ImportError as error:
        return {"streams": count, "failed": f"not installed: {error.name}"}
    except Exception as error:  # a contender that cannot run is a result, too
        return {"streams": count, "failed": f"{type(error).__name__}: {str(error)[:100]}"}


def _overhead(
    runtime: Runtime, plain: NPTForCausalLM, streams: Sequence[int], seconds: float, tell: Tell
) -> list[dict[str, Any]]:
    found = []
    for count in streams:
        tell(f"{NPT} and {PLAIN} by turns, {count} streams")
        found.append(measure_overhead(runtime.model, plain, count, seconds))
    return found


def _columns(runtime: Runtime, columns: Sequence[int], seconds: float, tell: Tell) -> list[dict[str, Any]]:
    tell(f"{NPT}, {columns} columns in each plastic layer by turns, {_COLUMN_STREAMS} streams")
    return measure_columns(runtime, columns, _COLUMN_STREAMS, seconds)


def _rollbacks(runtime: Runtime, streams: Sequence[int], seconds: float, tell: Tell) -> list[dict[str, Any]]:
    found = []
    for count, undone in product(streams, _UNDONE):
        tell(f"rollback of {undone} facts beside {count} streams")
        found.append(measure_rollback(runtime, count, undone, seconds))
    return found


def _writing(
    interfered: Callable[[int, float], tuple[dict[str, Any], dict[str, Any], dict[str, Any]]],
    loads: Loads,
    streams: Sequence[int],
    seconds: float,
    tell: Tell,
) -> list[dict[str, Any]]:
    loads[WITHOUT], loads[WRITING], outcomes = [], [], []
    for count in streams:
        tell(f"{WRITING}, {count} streams")
        before, during, outcome = interfered(count, seconds)
        loads[WITHOUT].append(before)
        loads[WRITING].append(during)
        outcomes.append(outcome)
    return outcomes
