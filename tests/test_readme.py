"""The README is a test: its commands are run against a real server, its answers must come back."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from tests.transcript import compare, steps

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PRINTED_URL = "http://127.0.0.1:8080"
START_SECONDS = 120
COMMAND_SECONDS = 120

ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _serve_command(port: int, data: Path) -> str:
    """What `make serve` would run, here and now, with this port and folder."""
    variables = [f"PORT={port}", f"DATA={data}", f"VENV={sys.prefix}", "HOST=127.0.0.1"]
    make = ["make", "-s", "--no-print-directory", "serve-command", *variables]
    return subprocess.run(
        make, cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True, text=True
    ).stdout.strip()


def _wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urlopen(f"{url}/readyz", timeout=5):
                return
        except (URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)
    pytest.fail(f"the server did not become ready:\n{log.read_text()[-4000:]}")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of its own, with an empty data folder."""
    folder = tmp_path_factory.mktemp("readme")
    port, log = _free_port(), folder / "server.log"
    command = _serve_command(port, folder / "data")
    with log.open("wb") as output:
        server = subprocess.Popen(
            ["sh", "-c", f"exec {command}"],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}", server, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _run(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", command],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
    )


def _replace(text: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        text = text.replace(old, new)
    return text


@pytest.mark.timeout(900)
def test_readme_prints_what_the_server_answers(url: str) -> None:
    transcript = [step for step in steps(README) if not step.command.startswith("make serve")]
    assert any("/facts" in step.command for step in transcript), "the main job is not shown"
    assert shutil.which("curl"), "the README's commands need curl"
    same = {PRINTED_URL: url}
    for step in transcript:
        done = _run(_replace(step.command, same))
        real = _replace(done.stdout.strip(), {real: printed for printed, real in same.items()})
        try:
            same |= compare(step.output, real)
        except AssertionError as difference:
            pytest.fail(f"$ {step.command}\n{difference}\nstderr: {done.stderr}\n{done.stdout}")


def test_readme_names_only_targets_that_exist() -> None:
    targets = sorted(set(re.findall(r"^(?:\$ )?make ([a-z-]+)", README, re.MULTILINE)))
    assert "serve" in targets
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True)
