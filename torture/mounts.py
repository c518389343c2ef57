"""File systems that are made, mounted and taken away again. Needs root."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUSY_S = 30.0
"""A loop device lets go of its image a moment after what lay on it was unmounted."""


def do(*command: str, fine: tuple[int, ...] = (0,)) -> str:
    """What a program prints. Raises RuntimeError where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in fine:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def make_image(image: Path, size: str, *mkfs: str) -> None:
    """An empty file system in a file; `mkfs` is the program that makes it, with its options."""
    image.unlink(missing_ok=True)
    do("truncate", "-s", size, str(image))
    do(*mkfs, "-q", str(image))


@contextmanager
def mounted(what: str | Path, where: Path, *options: str) -> Iterator[Path]:
    """Within the block `what` is mounted at `where`."""
    where.mkdir(parents=True, exist_ok=True)
    do("mount", *options, str(what), str(where))
    try:
        yield where
    finally:
        unmount(where)


def unmount(where: Path) -> None:
    """As soon as nothing uses it any more. Raises RuntimeError where that does not come."""
    end = time.monotonic() + BUSY_S
    while True:
        try:
            do("umount", str(where))
            return
        except RuntimeError as error:
            if "busy" not in str(error) or time.monotonic() > end:
                raise
        time.sleep(0.05)
