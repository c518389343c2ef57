"""`npt bench`: how fast this machine serves a checkpoint, or how fast a running server answers."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from service.cli.failing import fail, told_in_one_line


def command(
    model: Annotated[Path, typer.Option(help="Checkpoint folder.")] = Path("models/reference"),
    teacher: Annotated[
        Path | None,
        typer.Option(help="The plain Llama to compare with.  [the model without its adapters]"),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for bench.json, bench.md and bench.png.")] = Path(
        "runs/bench"
    ),
    streams: Annotated[str, typer.Option(help="Numbers of streams, with commas.")] = "1,4,16,64",
    seconds: Annotated[float, typer.Option(min=0.1, help="Least seconds a measurement.")] = 5.0,
    only: Annotated[
        str | None,
        typer.Option(help="Of startup, peers, overhead, columns, rollback and writing, with commas.  [all]"),
    ] = None,
    url: Annotated[str | None, typer.Option(help="Load this running server instead of a model here.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    writes: Annotated[
        bool, typer.Option("--writes", help="With --url: again with a fact every second. They stay there.")
    ] = False,
) -> None:
    """Throughput and latencies, with and without facts landing: in this process beside transformers
    and llama.cpp, or of a running server."""
    counts = _counts(streams)
    if url is not None:
        _load_server(url, counts, seconds, writes, out)
        return
    if writes:
        fail("--writes goes with --url")
    from transformers.utils import logging

    from npt_core.bench.bench import PARTS, run_bench
    from npt_core.checkpoint import CheckpointError
    from npt_core.engine import UnsupportedModel
    from npt_core.placement import Device, DType, Unplaceable

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # `generate` warns at every call that no end token will stop it.

    def tell(what: str) -> None:
        typer.echo(what, err=True)

    placement = {
        "device": _one_of(device, get_args(Device), "--device"),
        "dtype": _one_of(dtype, get_args(DType), "--dtype"),
    }
    parts = PARTS if only is None else [_one_of(part, PARTS, "--only") for part in only.split(",")]
    with told_in_one_line(CheckpointError, Unplaceable, UnsupportedModel, ValueError, OSError):
        typer.echo(run_bench(model, out, counts, seconds, teacher, tell=tell, parts=parts, **placement))


def _load_server(url: str, counts: Sequence[int], seconds: float, writes: bool, out: Path) -> None:
    from npt_core.bench.report import save
    from service.cli.client import ClientError
    from service.cli.load import measure_server

    with told_in_one_line(ClientError, OSError):
        typer.echo(save(asyncio.run(measure_server(url, counts, seconds, writes)), out))


def _one_of(value: str, choices: Sequence[str], option: str) -> Any:
    if value not in choices:
        fail(f"{option} {value!r} is none of {', '.join(choices)}")
    return value


def _counts(streams: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in streams.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        fail(f"--streams {streams!r} is not a list of numbers such as 1,16")
    return counts
