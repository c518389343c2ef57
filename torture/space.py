"""A real file system without room, and one that becomes read-only while a process writes. Needs root."""

import random
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from torture.history import Acknowledged, problems
from torture.kill import post
from torture.mounts import do, make_image, mounted
from torture.mutants import NONE
from torture.process import ServerProcess, WriterProcess, goes_on
from torture.progress import told

SIZES = 20
SMALLEST_KIB, STEP_KIB = 56, 36
"""From too small for an empty ledger to some hundred facts."""
AMPLE = "64m"
LONGEST_S = 0.15
MOST = 500
"""Changes until there is surely no room."""


@dataclass
class Outcome:
    """What a run saw."""

    rounds: int = 0
    acknowledged: int = 0
    refused_to_start: int = 0
    refused: int = 0
    problems: list[str] = field(default_factory=list)


def full(folder: Path, sizes: int = SIZES) -> Outcome:
    """No room at so many sizes: what does not fit is refused, reading goes on, and so does writing once there
    is room, without a restart.
    """
    outcome = Outcome()
    for number in told(range(sizes), "no room"):
        size = f"{SMALLEST_KIB + STEP_KIB * number}k"
        with _small(folder, size) as disk:
            found = _filled(disk, outcome)
        outcome.rounds += 1
        outcome.problems += [f"{each} ({size})" for each in found]
    return outcome


def _filled(disk: Path, outcome: Outcome) -> list[str]:
    data = disk / "data"
    try:
        writer = WriterProcess(data, NONE, "ask")
    except RuntimeError:  # `_goes_on` sees that it was for want of room
        outcome.refused_to_start += 1
        _give_room(disk)
        return _goes_on(data, [])
    made, found = [], []
    for _ in range(MOST):
        writer.ask("read")
        before = writer.line()
        writer.ask("fact")
        said = writer.line() or "died"
        if not said.startswith("{"):
            break
        made.append(Acknowledged.read(said))
    outcome.acknowledged += len(made)
    outcome.refused += 1
    if not said.startswith("refused DiskFull"):
        found.append(f"not refused for want of room: {said}")
    writer.ask("read")
    if (said := writer.line()) != before:
        found.append(f"changed: {said}")
    _give_room(disk)
    writer.ask("fact")
    said = writer.line() or "died"
    writer.kill()
    if not said.startswith("{"):
        return [*found, f"not recovered: {said}"]
    made.append(Acknowledged.read(said))
    return [*found, *_goes_on(data, made)]


def full_over_http(folder: Path) -> Outcome:
    """The same as a client sees it."""
    outcome = Outcome(rounds=1)
    with _small(folder, f"{SMALLEST_KIB + 10 * STEP_KIB}k") as disk:
        server = ServerProcess(disk / "data")
        with httpx2.Client(base_url=server.url, timeout=60) as client:
            made = {"id": ""}
            for number in range(MOST):
                answer = post(client, f"key-{number}", f"The thing {number}- is {'v' * 500}.")
                if answer.status_code != 201:
                    break
                made = answer.json()
                outcome.acknowledged += 1
            told = answer.status_code, answer.json()["type"]
            if told != (507, "npt:disk-full"):
                outcome.problems.append(f"not refused for want of room: {told}")
            outcome.refused += 1
            known = client.get(f"/facts/{made['id']}").status_code
            said = client.post("/generate", json={"prompt": "Who is it?"}).status_code
            if (known, said) != (200, 200):
                outcome.problems.append(f"not read while there is no room: {known}, {said}")
            _give_room(disk)
            again = post(client, f"key-{number}", f"The thing {number}- is {'v' * 500}.")
            if again.status_code != 201:
                outcome.problems.append(f"not recovered: {again.text}")
        if server.stop() != 0:
            outcome.problems.append("unclean: the server did not end with 0")
    return outcome


def read_only(folder: Path, rounds: int, seed: int = 0) -> Outcome:
    """The kernel finds an error in its ext4 and makes it read-only, in the middle of a write: that change and
    later ones are refused, reading goes on, and after `e2fsck` and a restart writing does.
    """
    draw, outcome = random.Random(seed), Outcome()
    image = folder / "disk.img"
    for number in told(range(rounds), "read-only"):
        make_image(image, "32M", "mkfs.ext4")
        with mounted(image, folder / "disk", "-o", "loop,errors=remount-ro") as disk:
            made, found = _struck(disk, draw.uniform(0.0, LONGEST_S), outcome)
        do("e2fsck", "-fy", str(image), fine=(0, 1))
        with mounted(image, folder / "disk", "-o", "loop") as disk:
            found += _goes_on(disk / "data", made)
        outcome.rounds += 1
        outcome.problems += [f"{each} (round {number})" for each in found]
    return outcome


def read_only_over_http(folder: Path) -> Outcome:
    """The same as clients see it."""
    outcome, image = Outcome(rounds=1), folder / "disk.img"
    make_image(image, "32M", "mkfs.ext4")
    with mounted(image, folder / "disk", "-o", "loop,errors=remount-ro") as disk:
        server = ServerProcess(disk / "data")
        with httpx2.Client(base_url=server.url, timeout=60) as client:
            made = post(client, "key-0", "The thing 0- is red.").json()
            outcome.acknowledged += 1
            _strike(disk)
            for number in (1, 2):
                answer = post(client, f"key-{number}", f"The thing {number}- is red.")
                if (answer.status_code, answer.json()["type"]) != (503, "npt:read-only"):
                    outcome.problems.append(f"not refused: {answer.text}")
                outcome.refused += 1
            known = client.get(f"/facts/{made['id']}").status_code
            said = client.post("/generate", json={"prompt": "What is thing 0-?"}).json()["text"]
            if (known, said) != (200, " red."):
                outcome.problems.append(f"not read while nothing can be written: {known}, {said!r}")
        if server.stop() != 0:
            outcome.problems.append("unclean: the server did not end with 0")
    do("e2fsck", "-fy", str(image), fine=(0, 1))
    with mounted(image, folder / "disk", "-o", "loop") as disk:
        server = ServerProcess(disk / "data")
        with httpx2.Client(base_url=server.url, timeout=60) as client:
            for number in (0, 1, 2):
                again = post(client, f"key-{number}", f"The thing {number}- is red.")
                replayed = again.headers.get("Idempotency-Replayed") == "true"
                if again.status_code != 201 or replayed is not (number == 0):
                    outcome.problems.append(f"not recovered: {number}, replayed {replayed}: {again.text}")
        server.stop()
    return outcome


def _struck(disk: Path, seconds: float, outcome: Outcome) -> tuple[list[Acknowledged], list[str]]:
    writer = WriterProcess(disk / "data", NONE, "ask")
    made, found = [], []
    writer.ask("fact")
    made.append(Acknowledged.read(writer.line() or ""))
    timer = threading.Timer(seconds, _strike, (disk,))
    timer.start()
    for _ in range(MOST):
        writer.ask("read")
        before = writer.line()
        writer.ask("fact")
        said = writer.line() or "died"
        if not said.startswith("{"):
            break
        made.append(Acknowledged.read(said))
    timer.join()
    outcome.acknowledged += len(made)
    outcome.refused += 1
    writer.ask("read")
    if (after := writer.line()) != before:
        found.append(f"changed: {after}")
    writer.ask("fact")
    then = writer.line() or "died"
    # Where the ledger was struck in the middle of its commit, it cannot even be read until that is undone.
    told = "refused ReadOnly", "refused StorageFailed: cannot read"
    if not (said.startswith("refused StorageFailed") and then.startswith(told)):
        found.append(f"not refused: {said}, then {then}")
    writer.kill()
    return made, found


def _strike(disk: Path) -> None:
    """What the kernel does where it finds its file system inconsistent."""
    device = Path(do("findmnt", "-n", "-o", "SOURCE", str(disk)).strip()).name
    Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("1")


def _goes_on(data: Path, made: list[Acknowledged]) -> list[str]:
    """All that was acknowledged is there, and the next start writes."""
    return [*goes_on(data), *problems(data, made)]


def _small(folder: Path, size: str) -> AbstractContextManager[Path]:
    return mounted("tmpfs", folder / "small", "-t", "tmpfs", "-o", f"size={size}")


def _give_room(disk: Path) -> None:
    do("mount", "-o", f"remount,size={AMPLE}", str(disk))
