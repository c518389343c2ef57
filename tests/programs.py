"""Programs that tests play with, and that are no Python packages."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / ".tools" / "bin"
"""Where `make tools` puts some of them."""


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test, with the reason; where REQUIRE_ALL_TESTS is set, as in CI, fail it."""
    if os.environ.get("REQUIRE_ALL_TESTS"):
        pytest.fail(reason)
    pytest.skip(reason)


def program_or_skip(name: str, advice: str) -> str:
    """The path of a program: what its variable says, what `make tools` made, what PATH has; without it see
    `skip_or_fail`.
    """
    for candidate in (os.environ.get(name.upper()), TOOLS / name, shutil.which(name)):
        if candidate and Path(candidate).exists():
            return str(candidate)
    skip_or_fail(f"{name} is not installed: {advice}, or set {name.upper()}")


def output_of(command: Sequence[str | Path]) -> str:
    """What a program prints; the test fails with what it says where it fails."""
    done = subprocess.run(
        list(map(str, command)), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
