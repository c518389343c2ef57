"""Killed, or failed, at every system call by which a change reaches the disk."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torture.history import Acknowledged, problems
from torture.mutants import NONE
from torture.process import WriterProcess, goes_on
from torture.writer import TIDYING

CALLS = ("openat", "write", "pwrite64", "fsync", "fdatasync", "rename", "unlink", "ftruncate", "fchmod")
CHANGES = ("fact", "batch", "retract", "rollback", "fold", *TIDYING)
FAILING = ("write", "pwrite64", "fsync", "fdatasync", "rename", "unlink")
KEYED = ("fact", "batch", "fold")
"""Changes that a client repeats under their key."""
MOST = 200
"""Calls of one kind in one change: far more than there are."""


@dataclass
class Outcome:
    """What a run saw: how many calls of each change were hit."""

    points: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def kill_everywhere(
    folder: Path, changes: tuple[str, ...] = CHANGES, calls: tuple[str, ...] = CALLS
) -> Outcome:
    """Kill the writer at the n-th call of each kind, for every n, in every kind of change."""
    outcome = Outcome()
    for change in changes:
        outcome.points[change] = 0
        history = _History.of(folder, change)
        for call in calls:
            for number in range(1, MOST):
                data, made = history.copy()
                writer = WriterProcess(data, NONE, "ask")
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
                outcome.problems += _told(change, call, number, goes_on(data, known))
    return outcome


def fail_everywhere(
    folder: Path,
    error: str = "EIO",
    changes: tuple[str, ...] = CHANGES,
    calls: tuple[str, ...] = FAILING,
    mutant: str = NONE,
) -> Outcome:
    """Let the n-th call of each kind that reaches the disk fail, in every kind of change: it is refused, and
    where the disk cannot be trusted any more so is every other until restart, also under the same key;
    reading goes on; nothing is lost.
    """
    outcome = Outcome(dict.fromkeys(changes, 0))
    for change in changes:
        history = _History.of(folder, change)
        for call in calls:
            for number in range(1, MOST):
                hit, found = _failed(history, change, call, number, error, mutant)
                outcome.problems += _told(change, call, number, found)
                if not hit:
                    break
                outcome.points[change] += 1
    return outcome


def _failed(
    history: "_History", change: str, call: str, number: int, error: str, mutant: str
) -> tuple[bool, list[str]]:
    """Whether there is such a call, other than that which writes the answer, and what was wrong."""
    data, made = history.copy()
    writer, trace, found = WriterProcess(data, mutant, "ask"), data.with_name("trace"), []
    writer.ask("read")
    before = writer.line()
    with _injecting(writer, call, number, f"error={error}", trace):
        writer.ask(change)
        said = writer.line() or "died"
        if said.startswith("refused"):
            found = _after(writer, change, call, before, made)
    hit = [line for line in trace.read_text().splitlines() if "(INJECTED)" in line]
    if any("write(1, " in line for line in hit):
        return False, []
    if said.startswith("{"):
        made.append(Acknowledged.read(said))
    elif not said.startswith(("refused", "tidied")):
        found.append(f"died: {said}")
    return bool(hit), [*found, *problems(data, made), *goes_on(data)]


def _after(
    writer: WriterProcess, change: str, call: str, before: str | None, made: list[Acknowledged]
) -> list[str]:
    """Reading goes on. After a failed sync no more is written: what the disk holds is not known. And what is
    acknowledged under the key that was refused is `made`, by a writer that goes on.
    """
    found = []
    writer.ask("read")
    if (said := writer.line()) != before:
        found.append(f"changed: {said}")
    if change in KEYED:
        writer.ask("again")
        if (said := writer.line() or "died").startswith("{"):
            made.append(Acknowledged.read(said))
        elif not said.startswith("refused"):
            found.append(f"died: {said}, of the same key")
    again, synced = said, call in ("fsync", "fdatasync") and change not in TIDYING
    writer.ask("fact")
    said = writer.line() or "died"
    if said.startswith("{"):
        made.append(Acknowledged.read(said))
    if synced and not said.startswith("refused ReadOnly"):
        found.append(f"writes on: {said}")
    if change in KEYED and again.startswith("{") and said.startswith("refused ReadOnly"):
        found.append(f"acknowledged by one that writes no more: {again}")
    return found


@dataclass(frozen=True)
class _History:
    """A folder whose last version knows one fact less than were taught, to be copied."""

    data: Path
    made: tuple[Acknowledged, ...]

    @classmethod
    def of(cls, folder: Path, change: str) -> "_History":
        """What is needed before a change."""
        data, made = Path(tempfile.mkdtemp(dir=folder)) / "data", []
        writer = WriterProcess(data, NONE, "ask")
        for before in ("fact", "batch", "fact", "retract", "fact"):
            writer.ask(before)
            made.append(Acknowledged.read(writer.line() or ""))
        if change == "collect":
            writer.ask("compact")
            writer.line()
        writer.kill()
        return cls(data, tuple(made))

    def copy(self) -> tuple[Path, list[Acknowledged]]:
        """Another one, and what it must still hold."""
        data = Path(tempfile.mkdtemp(dir=self.data.parent)) / "data"
        return Path(shutil.copytree(self.data, data)), list(self.made)


@contextmanager
def _injecting(
    writer: WriterProcess, call: str, number: int, what: str, trace: Path = Path("/dev/null")
) -> Iterator[None]:
    """Within the block the n-th `call` of any thread of the writer is tampered with; it is dead afterwards,
    and with it the tracer, which tells of every such call in `trace`.
    """
    command = ["strace", "-f", "-qq", "-o", str(trace), "-p", str(writer.pid)]
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
