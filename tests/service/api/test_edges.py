"""What surrounds every endpoint: names, limits, problems, health, metrics."""

import asyncio
import base64
import json
import re
import threading
from functools import partial
from typing import Any

import anyio
import httpx2
import pytest
from anyio import to_thread
from prometheus_client.parser import text_string_to_metric_families

from service import problems
from service.app import create_app
from service.host import THREADS, Host
from service.ledger.api_keys import ApiKeys, Scope
from service.middleware.access_log import AccessLog
from tests.service.conftest import OpenHost, client_of, fake

Client = httpx2.AsyncClient
PROMPT = {"prompt": "Who is the CEO of TechCorp?"}


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz"])
async def test_health(client: Client, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "weights_version": 0}


async def test_sane_request_id_comes_back(client: Client) -> None:
    answer = await client.get("/livez", headers={"X-Request-ID": "abc-1.2:3"})
    assert answer.headers["X-Request-ID"] == "abc-1.2:3"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, 'a"b', "é"])
async def test_other_request_ids_are_replaced(client: Client, given: str) -> None:
    answer = await client.get("/nowhere", headers={"X-Request-ID": given.encode()})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-ID"])
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]


async def test_announced_body_above_the_limit_is_refused_unread(host_of: OpenHost) -> None:
    async with client_of(host_of(max_body_bytes=1024)) as client:
        answer = await client.post("/generate", json={"prompt": "a" * 1024})
    assert answer.status_code == 413
    assert answer.json()["type"] == "npt:body-too-large"


async def test_unannounced_body_above_the_limit_is_refused(host_of: OpenHost) -> None:
    async def chunks() -> Any:
        for _ in range(100):
            yield b" " * 100

    async with client_of(host_of(max_body_bytes=1024)) as client:
        answer = await client.post(
            "/generate", content=chunks(), headers={"Content-Type": "application/json"}
        )
    assert answer.status_code == 413
    assert answer.json()["type"] == "npt:body-too-large"


@pytest.mark.parametrize("name", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
async def test_foreign_host_name_is_refused(client: Client, name: str) -> None:
    answer = await client.post("/generate", json=PROMPT, headers={"Host": name})
    assert answer.status_code == 421
    assert answer.json()["type"] == "npt:foreign-host"


@pytest.mark.parametrize("name", ["localhost:8080", "127.0.0.1:1", "[::1]:8080", "LOCALHOST"])
async def test_local_host_names_are_served(client: Client, name: str) -> None:
    assert (await client.get("/livez", headers={"Host": name})).status_code == 200


async def test_any_host_name_is_served_where_strangers_are_let_in(host_of: OpenHost) -> None:
    async with client_of(host_of(allow_unauthenticated=True)) as client:
        assert (await client.get("/livez", headers={"Host": "npt.example"})).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/nowhere", 404, "npt:not-found"),
        ("PUT", "/facts", 405, "npt:method-not-allowed"),
    ],
)
async def test_wrong_address_is_a_problem(
    client: Client, method: str, path: str, status: int, kind: str
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == kind
    assert answer.headers["X-NPT-Weights-Version"] == "0"


@pytest.mark.parametrize(
    ("path", "offered"), [("/facts", "GET, POST"), ("/facts/x", "DELETE, GET"), ("/v1/models/a/b", "GET")]
)
async def test_wrong_method_is_told_every_right_one(client: Client, path: str, offered: str) -> None:
    answer = await client.request("PATCH", path)
    assert (answer.status_code, answer.headers["Allow"]) == (405, offered)


async def test_address_with_a_slash_too_many_is_none(client: Client) -> None:
    answer = await client.get("/versions/", headers={"Host": "localhost"})
    assert (answer.status_code, answer.json()["type"]) == (404, "npt:not-found")


@pytest.mark.parametrize("field", ["prompt", "context", "stop"])
async def test_half_a_surrogate_pair_is_refused_by_name(client: Client, field: str) -> None:
    headers = {"Content-Type": "application/json"}
    body = json.dumps({**PROMPT, field: "a\ud800"})
    answer = await client.post("/generate", content=body, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"].partition(".")[0] == field


@pytest.mark.parametrize("depth", [100, 900, 100_000])
@pytest.mark.parametrize("path", ["/generate", "/facts", "/v1/completions"])
async def test_deep_nesting_is_refused(client: Client, path: str, depth: int) -> None:
    body = '{"fact": "x", "model": "reference", "prompt": ' + "[" * depth + "]" * depth + "}"
    answer = await client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)


async def test_whole_number_is_an_integer_however_it_is_written(client: Client) -> None:
    asked = '{"prompt": "Who?", "max_new_tokens": 2.0, "n": 1e0, "temperature": 0, "logprobs": %s}'
    headers = {"Content-Type": "application/json"}
    answer = await client.post("/generate", content=asked % "1.0", headers=headers)
    assert answer.json()["usage"]["completion_tokens"] == 2
    answer = await client.post("/generate", content=asked % "1.5", headers=headers)
    assert answer.json()["errors"][0]["field"] == "logprobs"


async def test_unexpected_error_tells_nothing_but_its_name(
    host: Host, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("the secret is xyzzy")

    monkeypatch.setattr(fake(host).consolidator, "consolidate", broken)
    answer = await client.post("/facts", json={"fact": "The sky is blue."})
    assert answer.status_code == 500
    assert answer.json()["type"] == "npt:internal-error"
    assert "xyzzy" not in answer.text
    assert answer.headers["X-Request-ID"]


def test_problem_types_are_stable() -> None:
    assert {kind.type: int(kind.status) for kind in problems.kinds()} == {
        "npt:malformed-request": 400,
        "npt:unauthenticated": 401,
        "npt:forbidden": 403,
        "npt:rate-limited": 429,
        "npt:not-found": 404,
        "npt:model-not-found": 404,
        "npt:fact-not-found": 404,
        "npt:version-gone": 410,
        "npt:version-not-found": 404,
        "npt:method-not-allowed": 405,
        "npt:fact-already-retracted": 409,
        "npt:fact-conflict": 409,
        "npt:batch-conflict": 409,
        "npt:cancelled": 409,
        "npt:idempotency-conflict": 409,
        "npt:idempotency-key-in-flight": 409,
        "npt:stale-version": 412,
        "npt:request-timeout": 408,
        "npt:body-too-large": 413,
        "npt:unsupported-media-type": 415,
        "npt:foreign-host": 421,
        "npt:invalid-request": 422,
        "npt:prompt-too-long": 422,
        "npt:fact-unreadable": 422,
        "npt:fact-not-recalled": 422,
        "npt:internal-error": 500,
        "npt:blob-damaged": 500,
        "npt:ledger-damaged": 500,
        "npt:contended": 503,
        "npt:fold-refused": 422,
        "npt:not-exportable": 409,
        "npt:operation-not-found": 404,
        "npt:operation-ended": 409,
        "npt:operation-elsewhere": 409,
        "npt:interrupted": 503,
        "npt:storage-unavailable": 503,
        "npt:not-ready": 503,
        "npt:overloaded": 503,
        "npt:draining": 503,
        "npt:version-not-reached": 503,
        "npt:read-only": 503,
        "npt:disk-full": 507,
    }


async def samples(client: Client) -> dict[str, float]:
    """Counted values by name and labels; what was timed only as counts."""
    text = (await client.get("/metrics")).text
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith(("_bucket", "_created", "_sum"))
    }


async def test_metrics_count_what_happened(client: Client) -> None:
    await client.post("/generate", json=PROMPT)
    await client.post("/facts", json={"fact": "The sky is blue."})
    await client.post("/facts", json={"fact": "An unreadable fact."})
    await client.get("/made/up")
    found = await samples(client)
    expected = {
        "npt_request_duration_seconds_count POST /generate 200": 1,
        "npt_request_duration_seconds_count POST /facts 201": 1,
        "npt_request_duration_seconds_count POST /facts 422": 1,
        "npt_request_duration_seconds_count GET unmatched 404": 1,
        "npt_time_to_first_token_seconds_count": 1,
        "npt_inter_token_latency_seconds_count": 13,
        "npt_queue_duration_seconds_count": 1,
        "npt_prompt_tokens_total": 27,
        "npt_generation_tokens_total": 14,
        "npt_facts_total published": 1,
        "npt_facts_total unreadable": 1,
        "npt_fact_write_duration_seconds_count study": 1,
        "npt_fact_write_duration_seconds_count ledger": 1,
        "npt_write_lock_wait_seconds_count": 2,
        "npt_fact_recall_ratio_count": 1,
        "npt_weight_drift_ratio_count": 1,
        "npt_requests_running": 0,
        "npt_requests_waiting": 0,
        "npt_weights_version": 1,
        "npt_live_versions": 2,
        "npt_bank_columns": 1,
    }
    assert {name: found.get(name) for name in expected} == expected


async def test_documentation_is_served(client: Client) -> None:
    assert (await client.get("/docs")).status_code == 200
    assert (await client.get("/openapi.json")).json()["openapi"].startswith("3.2")


@pytest.mark.parametrize("list_of", ["/facts", "/versions"])
@pytest.mark.parametrize("text", ["nothing", "-1:", f"{2**31}:", "1:\0", "9" * 100 + ":x"])
async def test_cursor_that_no_page_gave_is_refused(client: Client, list_of: str, text: str) -> None:
    cursor = base64.urlsafe_b64encode(text.encode()).decode()
    answer = await client.get(list_of, params={"cursor": cursor})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "cursor"


async def test_made_up_methods_share_one_label(client: Client) -> None:
    for method in ("FOO", "BAR"):
        assert (await client.request(method, "/generate")).status_code == 405
    exposed = (await client.get("/metrics")).text
    assert 'method="other"' in exposed
    assert "FOO" not in exposed


async def test_body_that_does_not_come_is_not_waited_for(host_of: OpenHost) -> None:
    host = host_of(read_timeout_s=0.05)
    sent: list[Any] = []
    never = asyncio.Event()

    async def receive() -> Any:
        if not sent and not receiving:
            receiving.append(True)
            return {"type": "http.request", "body": b'{"prompt": ', "more_body": True}
        await never.wait()

    async def send(message: Any) -> None:
        sent.append(message)

    receiving: list[bool] = []
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/generate",
        "raw_path": b"/generate",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8080),
        "scheme": "http",
        "http_version": "1.1",
    }
    await create_app(host)(scope, receive, send)
    headers = dict(sent[0]["headers"])
    assert (sent[0]["status"], headers[b"connection"]) == (408, b"close")
    assert json.loads(sent[1]["body"])["type"] == "npt:request-timeout"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://localhost:3000"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:8080"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost:8080"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({}, 200),
    ],
)
@pytest.mark.parametrize("anybody", [False, True])
async def test_pages_of_other_origins_do_not_write(
    host_of: OpenHost, headers: dict[str, str], status: int, anybody: bool
) -> None:
    async with client_of(host_of(allow_unauthenticated=anybody)) as client:
        given = {"Host": "localhost:8080"} | headers
        assert (await client.post("/generate", json=PROMPT, headers=given)).status_code == status
        assert (await client.get("/facts", headers=given)).status_code == 200


async def test_requests_are_counted_by_route_wherever_they_are_refused(host_of: OpenHost) -> None:
    host = host_of()
    ApiKeys(host.ledger).create("one", [Scope.GENERATE], actor="operator")
    host.access.refresh()
    async with client_of(host) as client:
        assert (await client.get("/facts/fact_1")).status_code == 401
        assert (await client.get("/docs")).status_code == 200
        assert (await client.get("/docs-assets/swagger-ui.css")).status_code == 200
        assert (await client.get("/nowhere")).status_code == 401
    text = host.metrics.render().decode()
    for method, route, code in (
        ("GET", "/facts/{fact_id}", 401),
        ("GET", "/docs", 200),
        ("GET", "unmatched", 401),
    ):
        line = f'npt_request_duration_seconds_count{{method="{method}",route="{route}",status="{code}"}} 1.0'
        assert line in text
    assert "process_resident_memory_bytes" in text


async def test_answer_is_counted_before_its_last_byte_is_read(host_of: OpenHost) -> None:
    host = host_of()
    metrics, seen = host.metrics, []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": False})

    async def send(message: Any) -> None:
        seen.append('route="unmatched",status="200"} 1.0' in metrics.render().decode())

    await AccessLog(app, metrics)({"type": "http", "method": "GET", "path": "/"}, None, send)  # type: ignore[arg-type]
    assert seen == [False, True]


async def test_documentation_needs_no_other_server(client: Client) -> None:
    page = (await client.get("/docs")).text
    assert "https://" not in page
    for path in re.findall(r'(?:src|href)="(/[^"]+)"', page):
        assert (await client.get(path)).status_code == 200
    assert "script-src 'self'" in (await client.get("/docs")).headers["Content-Security-Policy"]
    answer = await client.get("/facts")
    assert answer.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_who_waits_to_learn_or_to_search_keeps_nobody_from_an_answer(host: Host) -> None:
    gate = fake(host).consolidator.gate = threading.Semaphore(0)
    async with client_of(host) as client, anyio.create_task_group() as tasks:
        for number in range(host.settings.max_pending_writes):
            tasks.start_soon(partial(client.post, "/facts", json={"fact": f"The A{number} is B."}))
        await to_thread.run_sync(fake(host).consolidator.entered.acquire)
        for _ in range(40):  # as many threads as there are by default
            tasks.start_soon(partial(client.get, "/facts:search", params={"q": "Who?"}))
        while host.asking.statistics().tasks_waiting < 40 - THREADS:
            await anyio.lowlevel.checkpoint()
        with anyio.fail_after(60):
            assert (await client.post("/generate", json=PROMPT)).status_code == 200
            assert (await client.get("/facts")).status_code == 200
        gate.release(1000)


async def test_refused_writes_are_counted(client: Client) -> None:
    await client.post("/facts", json={"fact": "The sky is blue."})
    refused = await client.post("/facts", json={"fact": "The sky is green.", "on_conflict": "reject"})
    assert refused.status_code == 409
    assert (await samples(client))["npt_facts_total conflict"] == 1
