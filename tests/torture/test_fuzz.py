"""Short forms of `make fuzz`."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.openapi import document
from torture.fuzz import conformance
from torture.fuzz.keys import make_key
from torture.process import ServerProcess

ENVIRONMENT = {"NPT_VERSION_WAIT_S": "0.05"}


@pytest.fixture
def key(tmp_path: Path) -> str:
    return make_key(tmp_path / "data")


@pytest.fixture
def server(tmp_path: Path, key: str) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path / "data", ENVIRONMENT)
    yield process
    assert process.stop() == 0


def test_service_does_what_its_document_says(tmp_path: Path, server: ServerProcess, key: str) -> None:
    outcome = conformance.run(tmp_path, server.url, key, examples=15)
    assert outcome.problems == []
    assert outcome.operations == 25
    assert outcome.cases > 1500


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
