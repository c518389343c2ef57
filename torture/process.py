"""Processes to be killed, forked from one that has imported everything: a start takes a tenth of a second."""

import contextlib
import multiprocessing
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import httpx2

from torture.mutants import NONE
from torture.server import Double, serve
from torture.writer import READY

START_S = 120.0
_CONTEXT: ForkServerContext = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torture.writer", "torture.server"])


def _run(arguments: list[str], stdin: int, stdout: int) -> None:
    import torture.writer

    os.dup2(stdin, 0)
    os.dup2(stdout, 1)
    sys.stdin, sys.stdout = os.fdopen(0, "r"), os.fdopen(1, "w")
    sys.argv = ["writer", *arguments]
    torture.writer.main()


class WriterProcess:
    """Started, and ready, once constructed. Raises RuntimeError where it does not get there."""

    def __init__(self, data: Path, mutant: str, mode: str) -> None:
        from multiprocessing.reduction import DupFd

        read_in, self._to = os.pipe()
        self._from, write_out = os.pipe()
        self._buffer = b""
        self._process = _CONTEXT.Process(
            target=_start, args=([str(data), mutant, mode], DupFd(read_in), DupFd(write_out))
        )
        self._process.start()
        os.close(read_in)
        os.close(write_out)
        if self.line(START_S) != READY:
            raise RuntimeError("the writer did not start")

    @property
    def pid(self) -> int:
        """Of the process."""
        if self._process.pid is None:
            raise RuntimeError("not started")
        return self._process.pid

    def ask(self, change: str) -> None:
        """Have it make a change."""
        os.write(self._to, f"{change}\n".encode())

    def line(self, seconds: float = 60.0) -> str | None:
        """The next line it says; `None` once it is dead, or silent for so long."""
        end = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            if not select.select([self._from], [], [], max(end - time.monotonic(), 0))[0]:
                return None
            more = os.read(self._from, 1 << 16)
            if not more:
                return None
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def said(self) -> list[str]:
        """Every line so far, without waiting."""
        lines = []
        while (line := self.line(0)) is not None:
            lines.append(line)
        return lines

    def kill(self) -> None:
        """At once."""
        with contextlib.suppress(ProcessLookupError):  # something else was quicker
            os.kill(self.pid, signal.SIGKILL)
        self.wait()

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.is_alive()

    def wait(self) -> None:
        """For its end."""
        self._process.join()
        for descriptor in (self._to, self._from):
            with contextlib.suppress(OSError):
                os.close(descriptor)


def goes_on(data: Path, before: str | None = None) -> list[str]:
    """Without a hand: the next start says what was said `before`, if that is given, and writes."""
    try:
        writer = WriterProcess(data, NONE, "ask")
    except RuntimeError as error:
        return [f"not recovered: {error}"]
    try:
        writer.ask("read")
        if (said := writer.line()) != before and before is not None:
            return [f"changed: {before} to {said}"]
        writer.ask("fact")
        said = writer.line() or "nothing"
    finally:
        writer.kill()
    return [] if said.startswith("{") else [f"not recovered: {said}"]


def _start(arguments: list[str], stdin: object, stdout: object) -> None:
    _run(arguments, stdin.detach(), stdout.detach())  # type: ignore[attr-defined]


def free_port() -> int:
    """One that nobody listens on, below those that the kernel gives to the clients of this machine: it would
    give them a free one of its own before the server has bound it.
    """
    for port in random.sample(range(10_000, 30_000), 1000):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


class ServerProcess:
    """`npt serve` on a port of its own."""

    def __init__(
        self,
        data: Path,
        environment: dict[str, str] | None = None,
        double: Double | None = Double(),  # noqa: B008  (frozen)
        log: Path | None = None,
        wait: bool = True,
        mutant: str = NONE,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        arguments = (str(data), self.port, environment or {}, double, log, mutant)
        self._process = _CONTEXT.Process(target=serve, args=arguments)
        self._process.start()
        end = time.monotonic() + START_S
        while wait and not self._answers():
            if not self._process.is_alive() or time.monotonic() > end:
                raise RuntimeError("the server did not start")
            time.sleep(0.01)

    def join(self, seconds: float = START_S) -> int | None:
        """Its exit code, once it has ended by itself; None where it has not."""
        self._process.join(seconds)
        return self._process.exitcode

    @property
    def pid(self) -> int:
        """Of the process."""
        if self._process.pid is None:
            raise RuntimeError("not started")
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.is_alive()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """At once."""
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self._process.join()

    def stop(self) -> int | None:
        """As an orchestrator does; its exit code."""
        self._process.terminate()
        self._process.join()
        return self._process.exitcode

    def _answers(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx2.TransportError:
            return False


def strace_missing() -> str | None:
    """Why system calls cannot be traced here, if they cannot."""
    try:
        done = subprocess.run(["strace", "-qq", "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "strace is not installed"
    return None if done.returncode == 0 else f"strace does not work here: {done.stderr.strip()}"
