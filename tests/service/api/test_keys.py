"""Who may do what: keys, scopes, limits, and who did what."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi.routing import APIRoute
from sqlalchemy import select, update
from typer.testing import CliRunner, Result

from service.app import create_app
from service.cli import app as cli
from service.cli.client import ClientError, connected
from service.host import Host
from service.ledger import Ledger, LedgerDamaged, sqlite_url, timestamp
from service.ledger.api_keys import ApiKey, ApiKeys, Scope, matching
from service.ledger.checksums import with_checksum
from service.ledger.tables import api_keys
from service.middleware.authentication import OPEN, OPEN_BELOW
from service.storage import StorageFailed
from service.stores import LEDGER_FILE
from tests.service.api.test_facts import FACT, teach
from tests.service.conftest import client_of, fake

Client = httpx2.AsyncClient
PROMPT = {"prompt": "Who is the CEO of TechCorp?"}


@pytest.fixture
def key_for(host: Host) -> Callable[..., dict[str, str]]:
    """Headers with a new key."""

    def make(*scopes: Scope, **limits: Any) -> dict[str, str]:
        _, secret = ApiKeys(host.ledger).create("test", scopes, "test", **limits)
        host.access.refresh()
        return {"Authorization": f"Bearer {secret}"}

    return make


KeyFor = Callable[..., dict[str, str]]


async def test_server_with_a_key_answers_nobody_without(client: Client, key_for: KeyFor) -> None:
    assert (await client.post("/generate", json=PROMPT)).status_code == 200
    headers = key_for(Scope.GENERATE)
    for wrong in ({}, {"Authorization": "Bearer npt_wrong"}, {"Authorization": headers["Authorization"][7:]}):
        refused = await client.post("/generate", json=PROMPT, headers=wrong)
        assert (refused.status_code, refused.json()["type"]) == (401, "npt:unauthenticated")
        assert refused.headers["WWW-Authenticate"] == "Bearer"
    assert (await client.post("/generate", json=PROMPT, headers=headers)).status_code == 200


async def test_key_is_asked_for_before_the_request_is_read(client: Client, key_for: KeyFor) -> None:
    key_for(Scope.GENERATE)
    assert (await client.post("/facts", content=b"{")).status_code == 401
    assert (await client.get("/made/up")).status_code == 401


@pytest.mark.parametrize("path", sorted(OPEN - {"/docs"}))
async def test_probes_need_no_key(client: Client, key_for: KeyFor, path: str) -> None:
    key_for(Scope.GENERATE)
    assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", "/generate", Scope.GENERATE),
        ("GET", "/facts", Scope.FACTS_READ),
        ("GET", "/facts:search", Scope.FACTS_READ),
        ("POST", "/facts", Scope.FACTS_WRITE),
        ("POST", "/facts:batch", Scope.FACTS_WRITE),
        ("DELETE", "/facts/fact_1", Scope.FACTS_WRITE),
        ("GET", "/versions", Scope.FACTS_READ),
        ("GET", "/versions/0", Scope.FACTS_READ),
        ("POST", "/versions/0/activate", Scope.VERSIONS_WRITE),
        ("GET", "/operations", Scope.FACTS_READ),
        ("DELETE", "/operations/x", Scope.FACTS_WRITE),
        ("GET", "/audit", Scope.ADMIN),
    ],
)
async def test_each_scope_opens_its_own_doors(
    client: Client, key_for: KeyFor, method: str, path: str, scope: Scope
) -> None:
    others = key_for(*(set(Scope) - {scope, Scope.ADMIN}))
    refused = await client.request(method, path, headers=others)
    assert (refused.status_code, refused.json()["type"]) == (403, "npt:forbidden")
    assert scope in refused.json()["detail"]
    for allowed in (key_for(scope), key_for(Scope.ADMIN)):
        assert (await client.request(method, path, headers=allowed)).status_code not in (401, 403)


def test_every_address_is_open_on_purpose_or_needs_a_scope(host: Host) -> None:
    routes = [route for route in create_app(host).routes if isinstance(route, APIRoute)]
    guarded = {route.path for route in routes if route.dependant.dependencies and route.dependencies}
    assert {route.path for route in routes} - guarded <= OPEN | {f"{below}{{name}}" for below in OPEN_BELOW}


async def test_key_tells_what_it_allows(client: Client, key_for: KeyFor) -> None:
    nobody = (await client.get("/keys/self")).json()
    assert (nobody["id"], nobody["name"], nobody["scopes"]) == ("anonymous", None, list(Scope))
    later = "2100-01-01T00:00:00.000Z"
    headers = key_for(Scope.GENERATE, Scope.FACTS_READ, rate_per_minute=60, expires_at=later)
    mine = (await client.get("/keys/self", headers=headers)).json()
    assert mine["id"].startswith("key_")
    assert mine["scopes"] == ["generate", "facts:read"]
    assert (mine["name"], mine["rate_per_minute"], mine["expires_at"]) == ("test", 60, later)
    assert (await client.get("/keys/self")).status_code == 401
    everything = await client.get("/keys/self", headers=key_for(Scope.ADMIN))
    assert everything.json()["scopes"] == list(Scope)


async def test_revoked_and_expired_keys_are_refused(client: Client, host: Host, key_for: KeyFor) -> None:
    headers = key_for(Scope.GENERATE)
    (key,) = ApiKeys(host.ledger).all()
    ApiKeys(host.ledger).revoke(key.id, "test")
    host.access.refresh()
    assert (await client.post("/generate", json=PROMPT, headers=headers)).status_code == 401
    past = timestamp(datetime.now(UTC) - timedelta(seconds=1))
    headers = key_for(Scope.GENERATE, expires_at=past)
    assert (await client.post("/generate", json=PROMPT, headers=headers)).status_code == 401
    # Not even when no valid key is left.
    assert (await client.post("/generate", json=PROMPT)).status_code == 401


async def test_key_may_ask_so_often_a_minute(client: Client, key_for: KeyFor) -> None:
    headers, other = key_for(Scope.GENERATE, rate_per_minute=3), key_for(Scope.GENERATE)
    codes = [(await client.post("/generate", json=PROMPT, headers=headers)).status_code for _ in range(4)]
    assert codes == [200, 200, 200, 429]
    refused = await client.post("/generate", json=PROMPT, headers=headers)
    assert refused.json()["type"] == "npt:rate-limited"
    assert 1 <= int(refused.headers["Retry-After"]) <= 61
    assert (await client.post("/generate", json=PROMPT, headers=other)).status_code == 200


async def test_key_may_ask_so_much_at_once(host: Host, key_for: KeyFor) -> None:
    import asyncio
    import threading

    headers = key_for(Scope.GENERATE, max_concurrency=1)
    fake(host).model.gate = threading.Semaphore(0)
    async with client_of(host) as client:
        first = asyncio.create_task(client.post("/generate", json=PROMPT, headers=headers))
        await asyncio.to_thread(fake(host).model.entered.acquire)
        refused = await client.post("/generate", json=PROMPT, headers=headers)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        fake(host).model.gate.release(1000)
        assert (await first).status_code == 200
        assert (await client.post("/generate", json=PROMPT, headers=headers)).status_code == 200


async def test_audit_names_the_key(client: Client, host: Host, key_for: KeyFor) -> None:
    headers = key_for(Scope.FACTS_WRITE, Scope.ADMIN)
    (key,) = ApiKeys(host.ledger).all()
    made = (await teach(client, FACT, **headers)).json()
    assert (await client.get(f"/facts/{made['id']}", headers=headers)).json()["actor"] == key.id
    await client.delete(f"/facts/{made['id']}", headers=headers)
    entries = (await client.get("/audit", headers=headers)).json()["items"]
    assert [(e["actor"], e["action"], e["target"]) for e in entries] == [
        ("test", "key.create", key.id),
        (key.id, "fact", "versions/1"),
        (key.id, "retract", "versions/2"),
    ]
    page = (await client.get("/audit", params={"limit": 2}, headers=headers)).json()
    rest = await client.get("/audit", params={"cursor": page["next_cursor"]}, headers=headers)
    assert page["items"] + rest.json()["items"] == entries


async def test_keys_of_idempotency_belong_to_their_actor(client: Client, key_for: KeyFor) -> None:
    first, second = key_for(Scope.FACTS_WRITE), key_for(Scope.FACTS_WRITE)
    made = await teach(client, "The sky is blue.", **first, **{"Idempotency-Key": "k"})
    other = await teach(client, "The sea is green.", **second, **{"Idempotency-Key": "k"})
    assert (made.status_code, other.status_code) == (201, 201)
    assert made.json()["id"] != other.json()["id"]


async def test_commands_send_the_key_of_the_environment(
    host: Host, key_for: KeyFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = key_for(Scope.FACTS_READ)
    transport = httpx2.ASGITransport(create_app(host))
    async with connected("http://localhost", transport) as client:
        with pytest.raises(ClientError, match="A valid API key is needed"):
            await client.call("GET", "/facts")
    monkeypatch.setenv("NPT_API_KEY", headers["Authorization"].removeprefix("Bearer "))
    async with connected("http://localhost", transport) as client:
        assert (await client.call("GET", "/facts"))["items"] == []


def npt(data: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["keys", *arguments, "--data", str(data)])


async def test_keys_are_made_and_revoked_beside_the_server(host: Host, data: Path) -> None:
    made = npt(data, "create", "curl", "--scope", "generate", "--scope", "facts:read", "--rate", "60")
    secret = made.stdout.strip()
    assert secret.startswith("npt_")
    assert secret not in (data / "ledger.db").read_bytes().decode("latin-1")
    assert secret not in npt(data, "list").stdout
    (key,) = ApiKeys(host.ledger).all()
    assert (key.name, key.scopes, key.rate_per_minute) == ("curl", {"generate", "facts:read"}, 60)
    host.access.refresh()
    headers = {"Authorization": f"Bearer {secret}"}
    async with client_of(host) as client:
        assert (await client.post("/generate", json=PROMPT, headers=headers)).status_code == 200
        assert npt(data, "revoke", key.id).exit_code == 0
        host.access.refresh()
        assert (await client.post("/generate", json=PROMPT, headers=headers)).status_code == 401
    assert "revoked" in npt(data, "list").stdout
    assert [entry.action for entry in host.ledger.audit()] == ["key.create", "key.revoke"]


def test_key_of_a_file_is_made_once(data: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("0123456789abcdef" * 2 + "\n")
    create = ("create", "admin", "--scope", "admin", "--secret-file", str(secret))
    first, second = npt(data, *create), npt(data, *create)
    assert (first.stdout, second.stdout) == ("", "")
    assert first.exit_code == second.exit_code == 0
    assert first.stderr == second.stderr
    assert npt(data, "list").stdout == first.stderr
    ledger = Ledger(sqlite_url(data / LEDGER_FILE))
    (key,) = ApiKeys(ledger).all()
    assert matching([key], "0123456789abcdef" * 2) == key
    ledger.close()


def test_two_that_make_the_same_key_at_once_both_have_it(host: Host) -> None:
    keys = ApiKeys(host.ledger)
    first, secret = keys.create("admin", [Scope.ADMIN], "cli", secret="s" * 32)
    assert keys.create("admin", [Scope.ADMIN], "cli", secret="s" * 32) == (first, secret)
    assert keys.all() == [first]


@pytest.mark.parametrize("secret", ["", "short", "spaces in it " * 5, "\x00" * 40])
def test_secret_that_is_easily_guessed_is_refused(data: Path, tmp_path: Path, secret: str) -> None:
    (tmp_path / "secret").write_text(secret)
    arguments = ("create", "admin", "--scope", "admin", "--secret-file", str(tmp_path / "secret"))
    done = npt(data, *arguments)
    assert done.exit_code == 1
    assert "a secret has 32 characters or more" in done.stderr
    assert npt(data, "list").stdout == ""


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["create", "x", "--scope", "everything"], "there is no scope everything"),
        (["revoke", "key_0"], "there is no key key_0"),
    ],
)
def test_wrong_words_are_refused_in_one_line(data: Path, arguments: list[str], reason: str) -> None:
    done = npt(data, *arguments)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"npt: {reason}")


async def test_keys_that_cannot_be_read_again_stay_known(
    client: Client, host: Host, key_for: KeyFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = key_for(Scope.GENERATE)

    def fail() -> list[ApiKey]:
        raise StorageFailed("cannot read the ledger: disk I/O error")

    monkeypatch.setattr(host.access, "_read", 0.0)
    monkeypatch.setattr(host.access._keys, "all", fail)
    assert (await client.post("/generate", json={"prompt": "x"}, headers=headers)).status_code == 200


def test_scopes_that_nobody_knows_are_damage(host: Host, key_for: KeyFor) -> None:
    key_for(Scope.GENERATE)
    with host.ledger.engine.begin() as connection:
        row = dict(connection.execute(select(api_keys)).mappings().one())
        row = with_checksum(api_keys, row | {"scopes": '["generate!"]'})
        connection.execute(update(api_keys).values(row))
    with pytest.raises(LedgerDamaged, match="scopes of an API key: 'generate!'"):
        ApiKeys(host.ledger).all()
