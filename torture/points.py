"""Killed, or failed, at every system call by which a change reaches the disk."""

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torture.history import Acknowledged, problems
from torture.process import WriterProcess
from torture.writer import TIDYING

CALLS = ("openat", "write", "pwrite64", "fsync", "fdatasync", "rename", "unlink", "ftruncate", "fchmod")
CHANGES = ("fact", "batch", "retract", "rollback", "fold", *TIDYING)
FAILING = ("write", "pwrite64", "fsync", "fdatasync", "rename")
MOST = 200
"""Calls of one kind in one change: far more than there are."""


@dataclass
class Outcome:
    """What a run saw: how many calls of each change were hit."""

    points: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def kill_everywhere(folder: Path, changes: tuple[str, ...] = CHANGES) -> Outcome:
    """Kill the writer at the n-th call of each kind, for every n, in every kind of change."""
    outcome = Outcome()
    for change in changes:
        outcome.points[change] = 0
        for call in CALLS:
            for number in range(1, MOST):
                data, made = _prepared(folder, ("compact",) if change == "collect" else ())
                writer = WriterProcess(data, "none", "ask")
                writer.ask("read")
                before = writer.line()
                with _injecting(writer, call, number, "signal=KILL"):
                    writer.ask(change)
                    said = writer.line()
                hit = said is None
                if said is not None and said.startswith("{"):
                    made.append(Acknowledged.read(said))
                elif said is not None and not said.startswith("tidied"):
                    outcome.problems += _told(change, call, number, [said])
                outcome.problems += _told(change, call, number, problems(data, made))
                if not hit:
                    break
                outcome.points[change] += 1
                known = before if change in TIDYING else None
                outcome.problems += _told(change, call, number, _goes_on(data, known))
    return outcome


def fail_everywhere(folder: Path, error: str = "EIO") -> Outcome:
    """Let the n-th call of each kind that reaches the disk fail: the change is refused, and where the disk
    cannot be trusted any more so is every other until restart; reading goes on; nothing is lost.
    """
    outcome = Outcome({error: 0})
    for call in FAILING:
        for number in range(1, MOST):
            data, made = _prepared(folder)
            writer = WriterProcess(data, "none", "ask")
            writer.ask("read")
            before = writer.line()
            with _injecting(writer, call, number, f"error={error}"):
                writer.ask("fact")
                said = writer.line() or "died"
                refused = said.startswith("refused")
                found = _after(writer, call, before) if refused else []
            if said.startswith("{"):
                made.append(Acknowledged.read(said))
            elif not refused:
                found.append(f"died: {said}")
            outcome.problems += _told("fact", call, number, [*found, *problems(data, made), *_goes_on(data)])
            if not refused:
                break
            outcome.points[error] += 1
    return outcome


def _after(writer: WriterProcess, call: str, before: str | None) -> list[str]:
    """Reading goes on. After a failed sync no more is written: what the disk holds is not known."""
    found = []
    writer.ask("read")
    if (said := writer.line()) != before:
        found.append(f"changed: {said}")
    if call in ("fsync", "fdatasync"):
        writer.ask("fact")
        if not (said := writer.line() or "").startswith("refused ReadOnly"):
            found.append(f"writes on: {said}")
    return found


def _prepared(folder: Path, tidied: tuple[str, ...] = ()) -> tuple[Path, list[Acknowledged]]:
    """A folder of its own, with some history: its last version knows one fact less than were taught."""
    data = Path(tempfile.mkdtemp(dir=folder)) / "data"
    writer = WriterProcess(data, "none", "ask")
    made = []
    for change in ("fact", "batch", "fact", "retract", "fact"):
        writer.ask(change)
        made.append(Acknowledged.read(writer.line() or ""))
    for what in tidied:
        writer.ask(what)
        writer.line()
    writer.kill()
    return data, made


def _goes_on(data: Path, before: str | None = None) -> list[str]:
    """Without a hand: the next start says what was said `before`, if that is given, and writes."""
    try:
        writer = WriterProcess(data, "none", "ask")
    except RuntimeError as error:
        return [f"not recovered: {error}"]
    writer.ask("read")
    if (said := writer.line()) != before and before is not None:
        return [f"changed: {before} to {said}"]
    writer.ask("fact")
    said = writer.line() or "nothing"
    writer.kill()
    return [] if said.startswith("{") else [f"not recovered: {said}"]


@contextmanager
def _injecting(writer: WriterProcess, call: str, number: int, what: str) -> Iterator[None]:
    """Within the block the n-th `call` of any thread of the writer is tampered with; it is dead afterwards,
    and with it the tracer.
    """
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-p", str(writer.pid)]
    command += ["-e", f"trace={call}", "-e", f"inject={call}:{what}:when={number}"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as tracer:
        _await_tracer(writer.pid)
        try:
            yield
        finally:
            writer.kill()
            try:
                tracer.wait(10)
            except subprocess.TimeoutExpired:
                tracer.kill()


def _await_tracer(pid: int) -> None:
    """Until every thread is traced."""
    while True:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        if all("TracerPid:\t0\n" not in (task / "status").read_text() for task in tasks):
            return
        time.sleep(0.005)


def _told(change: str, call: str, number: int, found: list[str]) -> list[str]:
    return [f"{each} ({change}, {call} {number})" for each in found]
