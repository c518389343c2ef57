"""schemathesis over the whole document, against a running server: every check on every operation."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SETTINGS = Path(__file__).with_name("conformance.toml")
ROOT = SETTINGS.parents[2]


@dataclass
class Outcome:
    """What a run saw."""

    operations: int
    cases: int
    problems: list[str] = field(default_factory=list)


def run(
    folder: Path, url: str, key: str, examples: int, seed: int = 0, document: Path | None = None
) -> Outcome:
    """`examples` requests to each operation and phase, and what the answers lacked by `document`: the
    service's own, unless another is given. Raises RuntimeError where it did not come to its end.
    """
    report = folder / "report.json"
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(SETTINGS), "run"]
    command += [str(document or f"{url}/openapi.json"), "--url", url]
    command += ["--seed", str(seed), "--max-examples", str(examples)]
    command += ["--continue-on-failure", "--no-shrink", "--generation-database", "none", "--no-color"]
    command += ["--report", "json", "--report-json-path", str(report)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "FUZZ_KEY": key}, capture_output=True, text=True, check=False
    )
    if not report.exists():
        raise RuntimeError(done.stdout + done.stderr)
    return _read(json.loads(report.read_text()), done.stdout)


def _read(told: Any, printed: str) -> Outcome:
    outcome = Outcome(told["operations"]["tested"], told["test_cases"]["generated"])
    if not told["complete"]:
        raise RuntimeError(printed)
    if told["failures"] or told["errors"]:
        outcome.problems.append(printed)
    return outcome
