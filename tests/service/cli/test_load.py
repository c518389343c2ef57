"""The load generator against the application in this process; `test_commands` has a server process."""

from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from service.app import create_app
from service.cli import app, load
from service.cli.client import ClientError
from service.cli.load import measure_server
from service.host import Host
from tests.service.conftest import fake

LOCAL = "http://localhost"


async def measured(host: Host, *streams: int, writes: bool = False) -> dict[str, Any]:
    transport = httpx2.ASGITransport(create_app(host), raise_app_exceptions=False)
    return await measure_server(LOCAL, streams, 0.2, writes, transport)


async def test_every_answer_and_token_of_all_streams_is_counted(host: Host) -> None:
    results = await measured(host, 1, 3)
    assert list(results["loads"]) == ["server"]
    assert "writing" not in results
    one, three = results["loads"]["server"]
    assert (one["streams"], three["streams"]) == (1, 3)
    assert one["answers"] >= 1
    assert three["answers"] >= 3
    assert three["tokens_per_answer"] == len(" I don't know.")
    assert three["tokens_per_s"] > 0
    assert three["first_token_p50_s"] > 0
    assert three["errors"] == {}


async def test_facts_land_beside_the_streams(host: Host) -> None:
    results = await measured(host, 2, writes=True)
    (during,) = results["loads"]["server, a fact every second"]
    (outcome,) = results["writing"]
    assert during["answers"] >= 2
    assert outcome["written"] == host.version == 1
    assert outcome["refused"] == {}
    assert len(outcome["write_s"]) == 1


async def test_refused_facts_are_counted_by_reason(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_word", lambda _draw: "an unreadable")
    (outcome,) = (await measured(host, 1, writes=True))["writing"]
    assert outcome["written"] == host.version == 0
    assert outcome["refused"] == {"422 npt:fact-unreadable": 1}
    assert len(outcome["write_s"]) == 1


async def test_refused_requests_are_counted_by_reason(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "PROMPT_WORDS", 1000)
    (figures,) = (await measured(host, 2))["loads"]["server"]
    assert list(figures["errors"]) == ["422 npt:prompt-too-long"]
    assert figures["errors"]["422 npt:prompt-too-long"] >= 2
    assert figures["tokens_per_s"] == figures["answers"] == 0
    assert figures["first_token_p50_s"] is None


async def test_answers_that_fail_midway_are_counted(host: Host) -> None:
    fake(host).model.fails = True
    (figures,) = (await measured(host, 1))["loads"]["server"]
    assert list(figures["errors"]) == ["500 npt:internal-error, midway"]


async def test_server_that_is_not_there_is_told_at_once() -> None:
    with pytest.raises(ClientError, match="cannot talk to"):
        await measure_server("http://127.0.0.1:9", (1,), 0.1)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--streams", "1,x"), "--streams '1,x' is not a list of numbers"),
        (("--streams", "0"), "--streams '0' is not a list of numbers"),
        (("--writes",), "--writes goes with --url"),
        (("--url", "http://127.0.0.1:9"), "cannot talk to http://127.0.0.1:9"),
        (("--model", "nothing-there"), "nothing-there"),
    ],
)
def test_refusal_is_one_line(flags: tuple[str, ...], reason: str) -> None:
    result = CliRunner().invoke(app, ["bench", *flags])
    assert result.exit_code == 1, result.output
    assert reason in result.stderr
    assert result.stderr.count("\n") == 1
