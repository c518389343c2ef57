"""A fresh process: how long until its first token, and how much memory it takes.

Run as `python -m npt_core.bench.startup MODEL CACHE STREAMS BEGIN DEVICE DTYPE` it measures itself.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def measure_startup(model: Path, cache: Path, streams: int, device: str, dtype: str) -> dict[str, Any]:
    """Seconds since the start of a fresh process, and its peak memory in bytes.

    `imports_s`, `loaded_s` and `first_token_s` follow one another; `idle_peak_bytes` is the peak
    so far, and `peak_bytes` that after `streams` streams were answered at once; `gpu_peak_bytes`, on a
    GPU, is what the process then held of its memory at most.

    Raises:
        RuntimeError: the process failed; the message is the end of what it said.
    """
    arguments = [str(model), str(cache), str(streams), repr(time.time()), device, dtype]
    command = [sys.executable, "-m", "npt_core.bench.startup", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"a fresh process failed: {done.stderr.strip()[-300:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts KiB, macOS bytes


def _measure_myself(
    model: Path, cache: Path, streams: int, begin: float, device: Any, dtype: Any
) -> dict[str, Any]:
    import torch

    from npt_core.bench.load import answered, prompts, running
    from npt_core.engine import alone
    from npt_core.loading import load_runtime

    found: dict[str, Any] = {"streams": streams, "imports_s": time.time() - begin}
    runtime = alone(load_runtime, model, device=device, dtype=dtype, cache=cache)
    found["loaded_s"] = time.time() - begin
    vocabulary = runtime.model.config.vocab_size
    with running(runtime.model, runtime.bank, streams) as engine:
        answered(engine, prompts(1, vocabulary), new_tokens=1)
        found["first_token_s"] = time.time() - begin
        found["idle_peak_bytes"] = peak_bytes()
        answered(engine, prompts(streams, vocabulary, seed=1))
    found["peak_bytes"] = peak_bytes()
    if runtime.model.device.type == "cuda":
        found["gpu_peak_bytes"] = torch.cuda.max_memory_reserved()
    return found


if __name__ == "__main__":
    _model, _cache, _streams, _begin, *_placement = sys.argv[1:]
    _found = _measure_myself(Path(_model), Path(_cache), int(_streams), float(_begin), *_placement)
    sys.stdout.write(json.dumps(_found) + "\n")
