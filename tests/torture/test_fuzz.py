"""Short forms of `make fuzz`."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.openapi import document
from torture.fuzz import conformance
from torture.fuzz.flood import Flood, case_of
from torture.fuzz.keys import make_key
from torture.fuzz.server import VERSION_WAIT_S
from torture.fuzz.wire import Sent, ask
from torture.history import problems
from torture.process import ServerProcess

ENVIRONMENT = {"NPT_VERSION_WAIT_S": VERSION_WAIT_S}


@pytest.fixture
def key(tmp_path: Path) -> str:
    return make_key(tmp_path / "data")


@pytest.fixture
def server(tmp_path: Path, key: str) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path / "data", ENVIRONMENT)
    yield process
    assert process.stop() == 0


def test_service_does_what_its_document_says(tmp_path: Path, server: ServerProcess, key: str) -> None:
    outcome = conformance.run(tmp_path, server.url, key, examples=5)
    assert outcome.problems == []
    assert outcome.operations == 26
    assert outcome.cases > 500


@pytest.mark.parametrize("lie", ["status", "limit", "header"])
def test_document_that_lies_is_found_out(tmp_path: Path, server: ServerProcess, key: str, lie: str) -> None:
    described = document()
    asked = described["paths"]["/facts"]["get"]
    if lie == "status":
        del asked["responses"]["422"]
    elif lie == "limit":
        asked["parameters"][0]["schema"]["maximum"] = 2000
    else:
        described["components"]["headers"]["X-NPT-Weights-Version"]["schema"] = {"const": "newest"}
    described["paths"] = {"/facts": {"get": asked}}
    written = tmp_path / "openapi.json"
    written.write_text(json.dumps(described))
    assert conformance.run(tmp_path, server.url, key, 5, document=written).problems != []


def test_malformed_requests_are_refused_as_documented(
    tmp_path: Path, server: ServerProcess, key: str
) -> None:
    outcome = Flood(server.port, server.pid, key, 2000, seed=7).run()
    assert outcome.problems == []
    assert outcome.requests == 2000
    assert {"200", "400", "401", "404", "405", "412", "413", "415", "422"} <= outcome.answers.keys()
    assert problems(tmp_path / "data", []) == []


def test_same_seed_gives_the_same_requests() -> None:
    first, again = (case_of(3, 14, "key") for _ in range(2))
    assert (first.request, first.framing) == (again.request, again.framing)
    assert first.request != case_of(4, 14, "key").request


@pytest.mark.parametrize(
    "sent",
    [
        b"no HTTP\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
    ],
)
def test_what_is_no_http_is_answered_with_a_problem(server: ServerProcess, sent: bytes) -> None:
    answer = ask(server.port, Sent(sent))
    assert answer is not None
    assert (answer.status, answer.headers["content-type"]) == (400, "application/problem+json")
    assert json.loads(answer.body)["type"] == "npt:malformed-request"


def test_head_that_is_no_http_has_no_body(server: ServerProcess) -> None:
    head = b"HEAD /livez HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    answer = ask(server.port, Sent(head))
    assert answer is not None
    assert answer.body == b""
