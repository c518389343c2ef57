"""Several processes of one test, as `torchrun` starts them, joined by gloo on this machine."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

ROOT = Path(__file__).parents[2]


def launched(arguments: Sequence[str], store: Path, count: int = 2, seconds: float = 240) -> list[str]:
    """What each of `count` processes of `python ARGUMENTS` printed; AssertionError where one fails.

    They meet at the file `store`, which must not exist yet: ports of a busy machine may be taken.
    """
    base = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(count)}
    base |= {"MEETING_PLACE": str(store), "PYTHONWARNINGS": "ignore", "ACCELERATE_USE_CPU": "true"}
    base |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # asked for, and not used: `join` was quicker
    started = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**base, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in range(count)
    ]
    try:
        told = [process.communicate(timeout=seconds) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, told, strict=True):
        assert process.returncode == 0, errors
    return [output for output, _ in told]


def join() -> None:
    """Called first in each process."""
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    meeting_place = f"file://{os.environ['MEETING_PLACE']}"
    dist.init_process_group("gloo", init_method=meeting_place, rank=rank, world_size=count)
