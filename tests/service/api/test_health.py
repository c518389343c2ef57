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


async def test_server_that_is_behind_is_not_ready(
    client: Client, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host.replica, "_newest_seen", 101)
    refused = await client.get("/readyz")
    assert (refused.status_code, refused.json()["detail"]) == (503, "101 versions behind the ledger")
    monkeypatch.setattr(host.replica, "_newest_seen", 100)
    assert (await client.get("/readyz")).status_code == 200
