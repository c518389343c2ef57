"""What the log says of errors that nobody foresaw: where they were raised, and not what was asked."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from service.host import Host
from service.logs import configure_logging
from tests.service.conftest import client_of

SECRET = "The launch code is 4711."


@pytest.fixture(autouse=True)
def _quiet_afterwards() -> Iterator[None]:
    yield
    configure_logging("CRITICAL")


def fail(*_arguments: Any, **_named: Any) -> None:
    try:
        raise KeyError(SECRET)
    except KeyError as error:
        raise ExceptionGroup(SECRET, [ValueError(SECRET)]) from error


def logged(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("log", [structlog.get_logger("ours"), logging.getLogger("theirs")])
def test_error_is_told_by_types_and_places(log: Any, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    try:
        fail()
    except ExceptionGroup:
        log.exception("it failed")
    said = capsys.readouterr().err
    assert SECRET not in said
    (entry,) = logged(said)
    types = ["builtins.ExceptionGroup", "builtins.KeyError", "builtins.ValueError"]
    assert [error["type"] for error in entry["exception"]] == types
    assert entry["exception"][0]["at"][-1].endswith(" fail")
    assert entry["exception"][2]["at"] == []


def test_messages_are_told_where_they_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("DEBUG")
    try:
        fail()
    except ExceptionGroup:
        structlog.get_logger("ours").exception("it failed")
    assert SECRET in capsys.readouterr().err


async def test_request_and_background_write_that_fail_are_not_quoted(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host.engine, "submit", fail)
    monkeypatch.setattr(host.runtime.consolidator, "consolidate_all", fail)
    configure_logging("INFO")
    async with client_of(host) as client:
        answer = await client.post("/generate", json={"prompt": SECRET})
        begun = await client.post("/facts", json={"fact": SECRET}, headers={"Prefer": "respond-async"})
        while (operation := (await client.get(begun.headers["Location"])).json())["state"] != "failed":
            assert operation["state"] in ("pending", "running")
    assert (answer.status_code, answer.json()["type"]) == (500, "npt:internal-error")
    assert operation["problem"]["type"] == "npt:internal-error"
    said = capsys.readouterr().err
    assert SECRET not in said
    assert [entry["event"] for entry in logged(said) if "exception" in entry] == [
        "request failed",
        "an operation failed",
    ]
