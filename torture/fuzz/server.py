"""`npt serve` with a model, as a user runs it, and what it wrote when something failed."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2

ROOT = Path(__file__).parents[2]
START_S = 120.0
VERSION_WAIT_S = "0.05"
"""How long requests wait for versions that never come."""


class ModelServer:
    """Started, and ready, once constructed. Raises RuntimeError where it does not get there."""

    def __init__(self, data: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._data, self._log = data, data.parent / "server.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service.cli", "serve", "--data", str(data), "--port", str(self.port)],
                cwd=ROOT,
                env={**os.environ, "NPT_LOG_LEVEL": "ERROR", "NPT_VERSION_WAIT_S": VERSION_WAIT_S},
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server did not start: {self._log.read_text()}")
            time.sleep(0.1)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def stop(self) -> list[str]:
        """Tell it to end. What was wrong, by its own account: its exit, its log, its ledger."""
        self._process.terminate()
        code = self._process.wait()
        verified = subprocess.run(
            [sys.executable, "-m", "service.cli", "ledger", "verify", "--data", str(self._data)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        found = [f"the server ended with {code}"] if code else []
        found += [f"the ledger: {verified.stderr}"] if verified.returncode else []
        return found + [
            f"the log: {line[:2000]}" for line in self._log.read_text().splitlines() if _fails(line)
        ]

    def _answers(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx2.TransportError:
            return False


def _fails(line: str) -> bool:
    try:
        return bool(json.loads(line)["level"] == "error")
    except (ValueError, KeyError, TypeError):
        return True  # what no logger wrote
