from typing import Any

import httpx2
import pytest

from service.host import Host
from tests.service.conftest import fake

FACT = "The CEO of TechCorp is Dr. Sarah Chen."
JSON = {"Content-Type": "application/json"}
Client = httpx2.AsyncClient


async def teach(client: Client, fact: str = FACT, **headers: str) -> httpx2.Response:
    return await client.post("/facts", json={"fact": fact}, headers=headers)


async def knows(client: Client, prompt: str = "Who is the CEO of TechCorp?") -> str:
    text: str = (await client.post("/generate", json={"prompt": prompt})).json()["text"]
    return text


async def unchanged(client: Client) -> bool:
    facts = (await client.get("/facts")).json()
    return facts["items"] == [] and facts["weights_version"] == 0


async def test_taught_fact_is_answered_with_its_report(client: Client) -> None:
    answer = await teach(client)
    assert answer.status_code == 201
    made = answer.json()
    assert made["weights_version"] == 1
    assert made["report"]["recall_after"] == 1.0
    assert answer.headers["Location"] == f"/facts/{made['id']}"
    assert answer.headers["X-NPT-Weights-Version"] == "1"


async def test_request_reaches_the_consolidator(host: Host, client: Client) -> None:
    body = {
        "fact": f"  {FACT}\n",
        "questions": [{"question": "Who leads TechCorp?", "answer": "Dr. Sarah Chen"}],
        "strategy": "modulation",
        "alpha": 0.2,
        "layers": [1, 0],
        "token_idx": -2,
        "preset": "reasoning",
        "metadata": {"source": ["wiki", 3]},
    }
    made = (await client.post("/facts", json=body)).json()
    (request,) = fake(host).consolidator.requests
    assert (request.fact, request.strategy, request.alpha) == (FACT, "modulation", 0.2)
    assert (request.layers, request.token_idx, request.preset) == ((0, 1), -2, "reasoning")
    assert request.questions[0].answer == "Dr. Sarah Chen"
    stored = (await client.get(f"/facts/{made['id']}")).json()
    assert stored["fact"] == FACT
    assert stored["request"]["metadata"] == {"source": ["wiki", 3]}


async def test_dry_run_measures_and_writes_nothing(client: Client) -> None:
    answer = await client.post("/facts", json={"fact": FACT, "dry_run": True})
    assert answer.status_code == 200
    assert answer.json()["dry_run"] is True
    assert answer.json()["report"]["recall_after"] == 1.0
    assert await unchanged(client)
    assert await knows(client) == " I don't know."


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        ({"fact": ""}, "fact", "at least 1 character"),
        ({"fact": " \n\t "}, "fact", "at least 1 character"),
        ({"fact": "a" * 10_000}, "fact", "at most 4000 characters"),
        ({"fact": "a\0b"}, "fact", "control character U+0000"),
        ({"fact": None}, "fact", "string"),
        ({"layers": []}, "layers", "at least 1"),
        ({"layers": [-1]}, "layers.0", "greater than or equal to 0"),
        ({"layers": [0, 2]}, "layers", "2 is not below 2, the number of layers"),
        ({"layers": [1, 1]}, "layers", "twice"),
        ({"layers": "all"}, "layers", "list"),
        ({"alpha": 0}, "alpha", "greater than 0"),
        ({"alpha": -0.1}, "alpha", "greater than 0"),
        ({"alpha": 1.01}, "alpha", "less than or equal to 1"),
        ({"alpha": "1"}, "alpha", "number"),
        ({"strategy": "magic"}, "strategy", "'bank', 'modulation' or 'ridge'"),
        ({"preset": "magic"}, "preset", "'factual_recall', 'reasoning' or 'creative'"),
        ({"preset": "creative"}, "preset", "is for the strategy modulation, not for bank"),
        ({"token_idx": 3, "strategy": "ridge"}, "token_idx", "is for the strategy modulation, not for ridge"),
        ({"token_idx": 1000, "strategy": "modulation"}, "token_idx", "beyond the end"),
        ({"questions": [{"question": "a"}]}, "questions.0.answer", "required"),
        ({"questions": [{"question": "", "answer": "a"}]}, "questions.0.question", "at least 1"),
        ({"metadata": {"a": "b" * 9000}}, "metadata", "8192"),
        ({"subject": "TechCorp"}, "subject", "unknown field"),
    ],
)
async def test_field_that_does_not_fit_is_named_with_the_reason(
    client: Client, body: Any, field: str, reason: str
) -> None:
    answer = await client.post("/facts", json={"fact": FACT} | body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    (error,) = answer.json()["errors"]
    assert error["field"] == field
    assert reason in error["reason"]
    assert await unchanged(client)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_number_that_json_does_not_have_is_refused(client: Client, number: str) -> None:
    body = f'{{"fact": "{FACT}", "metadata": {{"a": [{number}]}}}}'
    answer = await client.post("/facts", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "metadata"
    assert await unchanged(client)


@pytest.mark.parametrize("fact", ["a" * 4000, "é" * 4000, "one\nline\tand another"])
async def test_fact_up_to_the_limit_is_taken(client: Client, fact: str) -> None:
    assert (await teach(client, fact)).status_code == 201


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b'{"fact": "\xff\xfe"}', "not UTF-8"),
        (b'{"fact": ', "not JSON"),
        (b"[" * 100_000, ""),
    ],
)
async def test_body_that_cannot_be_read_is_malformed(client: Client, content: bytes, detail: str) -> None:
    answer = await client.post("/facts", content=content, headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["type"] == "npt:malformed-request"
    assert detail in answer.json()["detail"]


async def test_half_a_surrogate_pair_is_no_text(client: Client) -> None:
    for body in (b'{"fact": "\\ud800"}', b'{"fact": "a", "metadata": {"k": "\\ud800"}}'):
        answer = await client.post("/facts", content=body, headers=JSON)
        assert answer.status_code == 422
    assert await unchanged(client)


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_body_that_is_not_called_json_is_refused(client: Client, media_type: str) -> None:
    answer = await client.post("/facts", content=b'{"fact": "a"}', headers={"Content-Type": media_type})
    assert answer.status_code == 415
    assert answer.json()["type"] == "npt:unsupported-media-type"


@pytest.mark.parametrize(
    ("fact", "kind", "recall"),
    [
        ("An unreadable fact.", "npt:fact-unreadable", 0.0),
        ("A forgettable fact.", "npt:fact-not-recalled", 0.2),
    ],
)
async def test_fact_the_model_does_not_take_is_refused_with_the_report(
    client: Client, fact: str, kind: str, recall: float
) -> None:
    before = await knows(client)
    answer = await teach(client, fact)
    assert answer.status_code == 422
    assert answer.json()["type"] == kind
    assert answer.json()["report"]["recall_after"] == recall
    assert await unchanged(client)
    assert await knows(client) == before


async def test_repeated_key_writes_once(client: Client) -> None:
    first = await teach(client, **{"Idempotency-Key": "k1"})
    again = await teach(client, **{"Idempotency-Key": "k1"})
    assert again.status_code == 201
    assert again.json() == first.json()
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert len((await client.get("/facts")).json()["items"]) == 1


async def test_key_with_another_body_is_a_conflict(client: Client) -> None:
    await teach(client, **{"Idempotency-Key": "k1"})
    answer = await teach(client, "The sky is blue.", **{"Idempotency-Key": "k1"})
    assert answer.status_code == 409
    assert answer.json()["type"] == "npt:idempotency-conflict"


async def test_refused_write_leaves_its_key_free(client: Client) -> None:
    await teach(client, "An unreadable fact.", **{"Idempotency-Key": "k1"})
    assert (await teach(client, **{"Idempotency-Key": "k1"})).status_code == 201


@pytest.mark.parametrize("key", ["", "a b", "é", "x" * 256])
async def test_senseless_key_is_malformed(client: Client, key: str) -> None:
    answer = await client.post("/facts", json={"fact": FACT}, headers={"Idempotency-Key": key.encode()})
    assert answer.status_code == 400


async def test_stale_if_match_writes_nothing(client: Client) -> None:
    assert (await teach(client, **{"If-Match": '"0"'})).status_code == 201
    stale = await teach(client, "The sky is blue.", **{"If-Match": '"0"'})
    assert stale.status_code == 412
    assert stale.json()["type"] == "npt:stale-version"
    assert stale.headers["X-NPT-Weights-Version"] == "1"
    fact_id = (await client.get("/facts")).json()["items"][0]["id"]
    refused = await client.delete(f"/facts/{fact_id}", headers={"If-Match": '"0"'})
    assert refused.status_code == 412


@pytest.mark.parametrize("value", ["0", 'W/"0"', '"x"', '"-1"', '"0", "1"'])
async def test_if_match_that_names_no_version_is_malformed(client: Client, value: str) -> None:
    assert (await teach(client, **{"If-Match": value})).status_code == 400


async def test_retracted_fact_is_not_known_any_more(client: Client) -> None:
    fact_id = (await teach(client)).json()["id"]
    answer = await client.delete(f"/facts/{fact_id}")
    assert answer.status_code == 200
    assert answer.json() == {"id": fact_id, "state": "retracted", "weights_version": 2}
    assert await knows(client) == " I don't know."
    stored = (await client.get(f"/facts/{fact_id}")).json()
    assert (stored["state"], stored["born"], stored["died"]) == ("retracted", 1, 2)


async def test_fact_is_retracted_only_once(client: Client) -> None:
    fact_id = (await teach(client)).json()["id"]
    await client.delete(f"/facts/{fact_id}")
    again = await client.delete(f"/facts/{fact_id}")
    assert again.status_code == 409
    assert again.json()["type"] == "npt:fact-already-retracted"


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_unknown_fact_is_not_found(client: Client, method: str) -> None:
    answer = await client.request(method, "/facts/fact_0000000000000000")
    assert answer.status_code == 404
    assert answer.json()["type"] == "npt:fact-not-found"


@pytest.mark.parametrize("newest_first", [False, True])
async def test_pages_hold_every_fact_once(client: Client, newest_first: bool) -> None:
    made = [(await teach(client, f"The X{i} is Y.")).json()["id"] for i in range(5)]
    seen: list[str] = []
    cursor = None
    while True:
        query = {"limit": 2, "newest_first": newest_first} | ({} if cursor is None else {"cursor": cursor})
        page = (await client.get("/facts", params=query)).json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == (made[::-1] if newest_first else made)


async def test_list_can_be_narrowed_to_a_state(client: Client) -> None:
    first, second = [(await teach(client, f"The X{i} is Y.")).json()["id"] for i in range(2)]
    await client.delete(f"/facts/{first}")
    for state, expected in (("published", [second]), ("retracted", [first])):
        page = (await client.get("/facts", params={"state": state})).json()
        assert [item["id"] for item in page["items"]] == expected


@pytest.mark.parametrize(
    ("query", "field"),
    [("limit=0", "limit"), ("limit=1001", "limit"), ("cursor=%21", "cursor"), ("state=x", "state")],
)
async def test_senseless_query_is_named(client: Client, query: str, field: str) -> None:
    answer = await client.get(f"/facts?{query}")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == field
