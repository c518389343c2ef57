"""`npt bench`: how fast this machine serves a checkpoint, beside transformers."""

from pathlib import Path
from typing import Annotated

import typer

from service.cli.failing import fail, told_in_one_line


def command(
    model: Annotated[Path, typer.Option(help="Checkpoint folder.")] = Path("models/reference"),
    out: Annotated[Path, typer.Option(help="Folder for bench.json and bench.md.")] = Path("runs/bench"),
    streams: Annotated[str, typer.Option(help="Numbers of streams, with commas.")] = "1,4,16,64",
    seconds: Annotated[float, typer.Option(min=0.1, help="Least seconds a measurement.")] = 5.0,
) -> None:
    """Throughput and latencies in this process, with and without facts landing."""
    from npt_core.bench import run_bench
    from npt_core.checkpoint import CheckpointError

    try:
        counts = tuple(int(part) for part in streams.split(","))
    except ValueError:
        fail(f"--streams {streams!r} is not a list of numbers such as 1,16")
    with told_in_one_line(CheckpointError, ValueError, OSError):
        typer.echo(run_bench(model, out, counts, seconds))
