"""A real process, a real port, a real disk; only the model is a fake."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.service.process import ServerProcess

FACT = "The CEO of TechCorp is Dr. Sarah Chen."
PROMPT = {"prompt": "Who is the CEO of TechCorp?"}
Start = Callable[[], ServerProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[ServerProcess] = []

    def begin() -> ServerProcess:
        started.append(ServerProcess(["-m", "tests.service.serve_fake", str(tmp_path / "data")]))
        return started[-1]

    yield begin
    for server in started:
        server.kill()


def ask(server: ServerProcess, **more: Any) -> Any:
    return httpx2.post(f"{server.url}/generate", json=PROMPT | more, timeout=60).json()


def teach(server: ServerProcess, fact: str = FACT) -> Any:
    answer = httpx2.post(f"{server.url}/facts", json={"fact": fact}, timeout=60)
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_acknowledged_fact_survives_a_kill(start: Start) -> None:
    server = start().wait_ready()
    assert ask(server)["text"] == " I don't know."
    assert teach(server)["weights_version"] == 1
    server.kill()
    again = start().wait_ready()
    assert ask(again)["text"] == " Dr. Sarah Chen."
    assert ask(again, weights_version=0)["text"] == " I don't know."


def test_stream_arrives_as_server_sent_events(start: Start) -> None:
    server = start().wait_ready()
    body = PROMPT | {"stream": True}
    with httpx2.stream("POST", f"{server.url}/generate", json=body, timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        data = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    assert "".join(part["text"] for part in data[:-1]) == data[-1]["text"] == " I don't know."


def test_second_server_on_one_folder_is_refused_in_one_line(start: Start, tmp_path: Path) -> None:
    start().wait_ready()
    code, log = start().wait_failed()
    assert code == 1
    assert log == f"npt: data folder {tmp_path / 'data'} is in use by another process\n"


@pytest.mark.parametrize("damage", ["blob", "ledger"])
def test_damaged_data_is_refused_in_one_line(start: Start, tmp_path: Path, damage: str) -> None:
    server = start().wait_ready()
    teach(server)
    server.stop()
    data = tmp_path / "data"
    file = data / "ledger.db" if damage == "ledger" else next((data / "blobs").iterdir())
    file.write_bytes(b"\0" * file.stat().st_size)
    code, log = start().wait_failed()
    assert code == 1
    assert log.startswith(f"npt: {damage} {file} is damaged: ")
    assert log.count("\n") == 1


def test_log_names_requests_and_keeps_prompts_out(start: Start) -> None:
    server = start().wait_ready()
    names = {"X-Request-ID": "mine", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    httpx2.post(f"{server.url}/generate", json=PROMPT, headers=names, timeout=60)
    assert server.stop() == 0
    entries = [json.loads(line) for line in server.log.splitlines()]
    (access,) = [entry for entry in entries if entry["event"] == "request"]
    assert (access["request_id"], access["status"], access["path"]) == ("mine", 200, "/generate")
    assert (access["trace_id"], access["span_id"]) == ("a" * 32, "b" * 16)
    assert access["weights_version"] == "0"
    assert "TechCorp" not in server.log


def test_port_that_is_taken_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        begin = [sys.executable, "-m", "service.cli", "serve", "--data", str(tmp_path), "--port", str(port)]
        done = subprocess.run(begin, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        f"npt: cannot listen on 127.0.0.1, port {port}: Address already in use\n",
    )
    assert not list(tmp_path.iterdir())


def test_head_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    server = ServerProcess(
        ["-m", "tests.service.serve_fake", str(tmp_path / "data")], {"NPT_READ_TIMEOUT_S": "0.2"}
    )
    try:
        address = server.wait_ready().url.removeprefix("http://").split(":")
        for begun in (b"", b"POST /generate HTTP/1.1\r\nHost: loc"):
            with socket.create_connection((address[0], int(address[1])), timeout=60) as half:
                half.sendall(begun)
                assert half.recv(1) == b""
    finally:
        server.kill()
