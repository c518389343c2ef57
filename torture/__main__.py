"""`python -m torture`: each kind of fault on its own, and what came of it, as JSON."""

import json
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from torture import chaos, corruption, cuts, kill, load, points, rehearsal, space, store
from torture.fuzz import runs
from torture.mutants import MUTANTS, NONE, OF_FAILURES, OF_REPLICAS

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
Rounds = Annotated[int, typer.Option(min=1)]
Changes = Annotated[list[str] | None, typer.Option(help=" ".join(points.CHANGES))]


@app.command("kill")
def kill_loop(rounds: Rounds = 1000) -> None:
    """kill -9 of a server under writes over HTTP."""
    _told("kill -9", lambda folder: kill.run(folder, rounds))


@app.command("points")
def kill_points(change: Changes = None) -> None:
    """Killed at every system call by which a change, or each of those named, reaches the disk."""
    changes = _known(change)
    _told("killed at every call", lambda folder: points.kill_everywhere(folder, changes))


@app.command("fail")
def failing_calls(error: str = "EIO", change: Changes = None, mutant: str = NONE) -> None:
    """Every such call fails in turn; with `--mutant hasty_replay`, a key finds what may not last."""
    changes = _known(change)
    _check_known([mutant], OF_FAILURES)
    _told(
        f"every call fails with {error}, mutant {mutant}",
        lambda folder: points.fail_everywhere(folder, error, changes, mutant=mutant),
        expect=mutant == NONE,
    )


@app.command("cuts")
def power_cuts(rounds: Rounds = 1000, file_system: str = "ext4", mutant: str = NONE) -> None:
    """The power goes while a process writes; with `--mutant all`, for each planted bug."""
    _needs_mounts()
    planted = list(MUTANTS) if mutant == "all" else [mutant]
    _check_known(planted, MUTANTS)
    for name in planted:
        _told(
            f"power cut, {file_system}, mutant {name}",
            lambda folder, name=name: cuts.run(folder, rounds, file_system, name),
            expect=name == NONE,
        )


@app.command("full")
def no_room(sizes: Rounds = space.SIZES) -> None:
    """A file system without room, at so many sizes; at one of them over HTTP."""
    _needs_mounts()
    _told("no room", lambda folder: space.full(folder, sizes))
    _told("no room, over HTTP", space.full_over_http)


@app.command("readonly")
def read_only(rounds: Rounds = 50) -> None:
    """A file system that the kernel makes read-only while a process writes; once over HTTP."""
    _needs_mounts()
    _told("read-only", lambda folder: space.read_only(folder, rounds))
    _told("read-only, over HTTP", space.read_only_over_http)


@app.command("corrupt")
def corruptions(rounds: Rounds = 200) -> None:
    """Bits flipped and files cut short, in ledger and blobs."""
    _told("corruption", lambda folder: corruption.run(folder, rounds))


@app.command("conform")
def conforming(examples: Rounds = 300, seed: int = 0) -> None:
    """schemathesis: requests made from openapi.yaml, answers held to it, by the reference model."""
    _told("schemathesis", lambda folder: runs.conform(folder, examples, seed))


@app.command("fuzz")
def malformed_requests(requests: Rounds = 100_000, seed: int = 0) -> None:
    """Malformed requests over HTTP and over bare sockets, to a server of the reference model."""
    _told("malformed requests", lambda folder: runs.malformed(folder, requests, seed))


@app.command("chaos")
def replicas_in_chaos(
    seconds: Annotated[float, typer.Option(min=0.0)] = 600.0, mutant: str = NONE, seed: int = 0
) -> None:
    """Three replicas on one PostgreSQL, killed, stopped, cut off, and the database crashed; with `--mutant
    lost_update`, a fence that does not hold."""
    _check_known([mutant], OF_REPLICAS)
    _told(
        f"chaos, mutant {mutant}",
        lambda folder: chaos.run(folder, seconds, mutant, seed=seed),
        expect=mutant == NONE,
    )


@app.command("store")
def spoilt_store(facts: Rounds = 500, share: Annotated[float, typer.Option(min=0, max=0.9)] = 0.2) -> None:
    """Blobs in a store of S3's protocol, of whose answers a share is spoilt midway."""
    _told("store", lambda folder: store.run(folder, facts, share))


@app.command("load")
def many_clients(
    seconds: Annotated[float, typer.Option(min=0.0)] = 600.0,
    clients: Rounds = 64,
    writers: Rounds = 4,
    out: Annotated[Path | None, typer.Option(help="A CSV file for samples of the server's memory.")] = None,
) -> None:
    """Clients with keys, reading and writing, on the reference model; their counts and the metrics agree, and
    memory does not grow.
    """
    _told("load", lambda folder: load.run(folder, seconds, clients, writers, out))


@app.command("rehearsal")
def rolling_upgrade(
    seconds: Annotated[float, typer.Option(min=0.0)] = 600.0, model: Path | None = None
) -> None:
    """What a cluster does to its replicas, under load; with `--model`, a real one instead of its double."""
    _told(f"rehearsal, {model or 'double'}", lambda folder: rehearsal.run(folder, seconds, model))


def _known(asked: list[str] | None) -> tuple[str, ...]:
    changes = tuple(asked or points.CHANGES)
    _check_known(changes, points.CHANGES)
    return changes


def _check_known(asked: Iterable[str], known: Iterable[str]) -> None:
    if unknown := set(asked) - set(known):
        raise typer.BadParameter(f"{min(unknown)} is none of {', '.join(known)}")


def _needs_mounts() -> None:
    reason = cuts.missing()
    if reason is not None:
        raise typer.BadParameter(reason)


def _told(what: str, run: Callable[[Path], Any], expect: bool = True) -> None:
    """Fails where a sound service has problems, or a broken one none."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="npt-torture-") as name:
        outcome = asdict(run(Path(name)))
    outcome["problems"] = outcome["problems"][:10]
    typer.echo(json.dumps({"what": what, "seconds": round(time.perf_counter() - begin), **outcome}))
    if bool(outcome["problems"]) is expect:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
