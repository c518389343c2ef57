"""What surrounds every endpoint: names, limits, problems, health, metrics."""

import base64
import json
import re
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service import problems
from service.host import Host
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
@pytest.mark.parametrize("text", ["nothing", "-1:", f"{2**63}:", "9" * 100 + ":x"])
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
