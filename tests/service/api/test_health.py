"""Three probes, and what each of them means."""

import httpx2
import pytest

from service.host import Host

Client = httpx2.AsyncClient


async def test_healthy_server_passes_every_probe(client: Client) -> None:
    for path in ("/livez", "/startupz", "/readyz"):
        answer = await client.get(path)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok", "weights_version": 0})


async def test_server_that_shuts_down_is_alive_and_not_ready(client: Client, host: Host) -> None:
    host.draining.set()
    refused = await client.get("/readyz")
    assert (refused.status_code, refused.json()["type"]) == (503, "npt:not-ready")
    assert refused.json()["detail"] == "the server is shutting down"
    assert (await client.get("/livez")).status_code == 200
    assert (await client.post("/generate", json={"prompt": "x"})).status_code == 200


async def test_server_whose_engine_failed_is_to_be_started_again(
    client: Client, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.engine, "_error", RuntimeError("out of memory"))
    for path in ("/livez", "/readyz"):
        refused = await client.get(path)
        assert refused.status_code == 503
        assert refused.json()["detail"] == "the engine failed: RuntimeError: out of memory"
    assert "\nnpt_ready 0.0" in (await client.get("/metrics")).text
    monkeypatch.undo()
    assert "\nnpt_ready 1.0" in (await client.get("/metrics")).text


async def test_server_that_is_behind_is_not_ready(
    client: Client, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.replica, "_newest_seen", 101)
    refused = await client.get("/readyz")
    assert (refused.status_code, refused.json()["detail"]) == (503, "101 versions behind the ledger")
    monkeypatch.setattr(host.replica, "_newest_seen", 100)
    assert (await client.get("/readyz")).status_code == 200


async def test_server_that_shuts_down_lets_go_of_its_connections(client: Client, host: Host) -> None:
    assert "Connection" not in (await client.post("/generate", json={"prompt": "x"})).headers
    host.draining.set()
    for path in ("/generate", "/nowhere"):
        assert (await client.post(path, json={"prompt": "x"})).headers["Connection"] == "close"


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
async def test_stream_is_the_last_answer_of_its_connection(client: Client, path: str) -> None:
    body = {"prompt": "x", "stream": True} | ({"model": "reference"} if path.startswith("/v1") else {})
    answer = await client.post(path, json=body)
    assert (answer.status_code, answer.headers["Connection"]) == (200, "close")
