"""A server in a process of its own, as a user runs it."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
STOP_S = 240
"""Ample, because a start that is refused comes after seconds of imports on a busy machine."""


class ServerProcess:
    """Started by the constructor; `wait_ready` returns when the port is open."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str] = {}) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: list[str] = []
        self._opened = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = ""

    def wait_ready(self) -> "ServerProcess":
        """Wait until it says where it listens, or has ended without."""
        self._opened.wait()
        assert self.url, self.log
        return self

    @property
    def log(self) -> str:
        """Standard error so far."""
        return "".join(self._lines)

    def kill(self) -> None:
        """As a power cut: no chance to tidy up."""
        self._process.kill()
        self._end()

    def stop(self) -> int:
        """As an orchestrator does; the exit code."""
        self._process.terminate()
        return self._end()

    def wait_failed(self) -> tuple[int, str]:
        """Exit code and log of a start that is refused."""
        return self._end(), self.log

    def _end(self) -> int:
        code = self._process.wait(STOP_S)
        self._reader.join(STOP_S)
        return code

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._lines.append(line)
            if "Uvicorn running on" in line:
                self.url = json.loads(line)["event"].split()[3]
                self._opened.set()
        self._process.stderr.close()
        self._opened.set()
