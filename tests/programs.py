"""Programs that tests play with, and that are no Python packages."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / ".tools" / "bin"
"""Where `make tools` puts some of them."""


class ProgramMissing(Exception):
    """A program is not installed."""


def program_or_skip(name: str, advice: str) -> str:
    """The path of a program: what its variable says, what `make tools` made, what PATH has. Without it the
    test is skipped, with the advice; where REQUIRE_ALL_TESTS is set, as in CI, it fails.
    """
    for candidate in (os.environ.get(name.upper()), TOOLS / name, shutil.which(name)):
        if candidate and Path(candidate).exists():
            return str(candidate)
    reason = f"{name} is not installed: {advice}, or set {name.upper()}"
    if os.environ.get("REQUIRE_ALL_TESTS"):
        raise ProgramMissing(reason)
    pytest.skip(reason)


def output_of(command: Sequence[str | Path]) -> str:
    """What a program prints; the test fails with what it says where it fails."""
    done = subprocess.run(
        list(map(str, command)), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
