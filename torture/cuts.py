"""Power cuts: the device of a live file system as it is at one instant, while a process writes.

The file system lies in an image on another one (XFS with reflinks), which clones the image at once: what the
inner one has not yet sent to its device is lost, as when power fails. Needs root, loop devices, xfsprogs.
"""

import os
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torture.history import Acknowledged, kinds, problems
from torture.mounts import do, make_image, mounted, unmount
from torture.process import WriterProcess, goes_on
from torture.progress import told

SIZES = {"ext4": "96M", "xfs": "320M"}
FRESH_FOLDER = 100
"""Cuts on one data folder: checking it takes longer with every fact."""
START_EVERY = 20
"""Cuts, the last one among them, after which a writer starts on what was left, and writes; that takes as long
as some other cuts."""


@dataclass
class Outcome:
    """What a run saw; `bad` counts cuts by what was wrong with what was left."""

    cuts: int = 0
    started: int = 0
    """Cuts after which a writer started, and wrote."""
    acknowledged: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def missing() -> str | None:
    """Why this cannot be done here, if it cannot."""
    if os.geteuid() != 0:
        return "needs root"
    for program in ("mkfs.xfs", "mkfs.ext4", "losetup"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    done = subprocess.run(["losetup", "-f"], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"no loop devices: {done.stderr.strip()}"


def run(
    folder: Path, cuts: int, file_system: str, mutant: str = "none", seed: int = 0, first_bad: bool = False
) -> Outcome:
    """Cut the power `cuts` times; or, to know whether a bug shows, up to the `first_bad` cut."""
    draw, outcome = random.Random(seed), Outcome()
    with _disk(folder, file_system) as (disk, inner, crash):
        for first in told(range(0, cuts, FRESH_FOLDER), "power cuts"):
            data = inner / f"data-{first}"
            writer = WriterProcess(data, mutant, "forever")
            made: list[Acknowledged] = []
            try:
                for left in reversed(range(min(FRESH_FOLDER, cuts - first))):
                    time.sleep(draw.uniform(0.005, 0.12))
                    made += [Acknowledged.read(line) for line in writer.said() if line.startswith("{")]
                    start = left % START_EVERY == 0
                    found = _cut(disk, crash, data.name, file_system, made, start)
                    outcome.cuts += 1
                    outcome.started += start and not found
                    outcome.bad.update(kinds(found))
                    outcome.problems += found[:3]
                    if found and first_bad:
                        return outcome
            finally:
                writer.kill()
                outcome.acknowledged += len(made)
                shutil.rmtree(data)
    return outcome


def _cut(
    disk: Path, crash: Path, name: str, file_system: str, made: list[Acknowledged], start: bool
) -> list[str]:
    """What is wrong with what was left; where nothing is, and `start`, with the next start on it."""
    clone = disk.with_name("clone.img")
    do("cp", "--reflink=always", str(disk), str(clone))
    options = "loop,nouuid" if file_system == "xfs" else "loop"
    tried = subprocess.run(
        ["mount", "-o", options, str(clone), str(crash)], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        return [f"not mounted: {tried.stderr.strip()}"]
    try:
        return problems(crash / name, made) or (goes_on(crash / name) if start else [])
    finally:
        unmount(crash)
        clone.unlink()


@contextmanager
def _disk(folder: Path, file_system: str) -> Iterator[tuple[Path, Path, Path]]:
    """An image, where it is mounted, and where its clones will be."""
    outer, inner, crash = (folder / name for name in ("outer", "inner", "crash"))
    image = folder / "outer.img"
    crash.mkdir(parents=True)
    make_image(image, "2G", "mkfs.xfs", "-m", "reflink=1")
    try:
        with mounted(image, outer, "-o", "loop"):
            disk = outer / "disk.img"
            make_image(disk, SIZES[file_system], f"mkfs.{file_system}")
            with mounted(disk, inner, "-o", "loop"):
                yield disk, inner, crash
    finally:
        image.unlink()
