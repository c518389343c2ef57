"""Several facts in one version; facts that contradict; which fact would answer."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import httpx2
import pytest

from tests.service.api.test_facts import FACT, knows, teach, unchanged

Client = httpx2.AsyncClient
OTHER = "The CEO of TechCorp is Marcus Reed."


async def batch(client: Client, *facts: Any, headers: dict[str, str] | None = None, **more: Any) -> Any:
    body = {"facts": [{"fact": fact} if isinstance(fact, str) else fact for fact in facts], **more}
    return await client.post("/facts:batch", json=body, headers=headers)


async def test_batch_is_one_version_in_the_order_of_the_request(client: Client) -> None:
    sentences = [f"The place {i} is Town {i}." for i in range(5)]
    answer = await batch(client, *sentences, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 201
    made = answer.json()
    assert made["weights_version"] == 1
    stored = [(await client.get(f"/facts/{fact['id']}")).json()["fact"] for fact in made["facts"]]
    assert stored == sentences
    version = (await client.get("/versions/1")).json()
    assert sorted(version["births"]) == sorted(fact["id"] for fact in made["facts"])
    again = await batch(client, *sentences, headers={"Idempotency-Key": "k"})
    assert again.json() == made
    assert again.headers["Idempotency-Replayed"] == "true"


async def test_refused_fact_refuses_the_batch_and_is_named(client: Client) -> None:
    answer = await batch(client, FACT, "This is forgettable.", "The sky is blue.", "An unreadable one.")
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["type"] == "npt:fact-not-recalled"
    assert [(e["field"], e["report"]["recall_after"]) for e in problem["errors"]] == [
        ("facts.1", 0.2),
        ("facts.3", 0.0),
    ]
    assert await unchanged(client)


async def test_field_of_a_batch_is_named_with_its_place(client: Client) -> None:
    answer = await batch(client, FACT, {"fact": "The sky is blue.", "layers": [9]})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "facts.1.layers"
    assert (await batch(client)).status_code == 422
    assert await unchanged(client)


async def test_batch_that_contradicts_itself_is_refused(client: Client) -> None:
    answer = await batch(client, "The sky is blue.", FACT, OTHER)
    assert answer.status_code == 409
    assert answer.json()["type"] == "npt:batch-conflict"
    assert "facts.1 and facts.2" in answer.json()["detail"]
    assert await unchanged(client)


async def test_facts_that_disturb_each_other_are_refused_together(client: Client) -> None:
    quarrel = "The sky is quarrelsome."
    answer = await batch(client, FACT, quarrel)
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert (error["field"], error["report"]["recall_after"]) == ("facts.1", 0.5)
    assert await unchanged(client)
    assert (await client.post("/facts", json={"fact": quarrel})).status_code == 201


async def test_batch_may_contradict_itself_where_that_is_allowed(client: Client) -> None:
    answer = await batch(client, FACT, {"fact": OTHER, "on_conflict": "allow"})
    assert answer.status_code == 201


async def test_rehearsed_batch_writes_nothing(client: Client) -> None:
    first = (await teach(client)).json()["id"]
    answer = await batch(client, OTHER, "The sky is blue.", dry_run=True)
    assert answer.status_code == 200
    rehearsed = answer.json()
    assert rehearsed["conflicts"] == [first]
    assert len(rehearsed["reports"]) == 2
    assert (await client.get("/versions")).json()["weights_version"] == 1


async def test_contradicting_fact_supersedes(client: Client) -> None:
    first = (await teach(client)).json()
    assert first["superseded"] == []
    second = (await teach(client, OTHER)).json()
    assert second["superseded"] == [first["id"]]
    assert await knows(client) == " Marcus Reed."
    old = (await client.get(f"/facts/{first['id']}")).json()
    assert (old["state"], old["died"]) == ("retracted", 2)
    (entry,) = [v for v in (await client.get("/versions")).json()["items"] if v["version"] == 2]
    assert (entry["births"], entry["deaths"]) == ([second["id"]], [first["id"]])


async def test_contradicting_fact_is_rejected_or_allowed_if_asked(client: Client) -> None:
    first = (await teach(client)).json()["id"]
    answer = await client.post("/facts", json={"fact": OTHER, "on_conflict": "reject"})
    assert answer.status_code == 409
    assert answer.json()["type"] == "npt:fact-conflict"
    assert answer.json()["conflicts"] == [first]
    answer = await client.post("/facts", json={"fact": OTHER, "on_conflict": "allow"})
    assert (answer.status_code, answer.json()["superseded"]) == (201, [])
    assert (await client.get("/versions/2")).json()["facts"] == 2


async def test_same_fact_again_is_no_contradiction(client: Client) -> None:
    first = (await teach(client)).json()["id"]
    answer = await client.post("/facts", json={"fact": FACT, "on_conflict": "reject"})
    assert (answer.status_code, answer.json()["superseded"]) == (201, [])
    assert answer.json()["report"]["restates"] == [first]


async def test_fact_that_would_answer_is_named(client: Client) -> None:
    first = (await teach(client)).json()["id"]
    await teach(client, "The sky is blue.")
    found = (await client.get("/facts:search", params={"q": "Who is the CEO of TechCorp?"})).json()
    (match,) = found["items"]
    assert (match["id"], match["fact"], match["fires"]) == (first, FACT, True)
    assert found["weights_version"] == 2
    at_zero = await client.get(
        "/facts:search", params={"q": "Who is the CEO of TechCorp?", "weights_version": 0}
    )
    assert (at_zero.json()["items"], at_zero.json()["weights_version"]) == ([], 0)


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({}, 422),
        ({"q": ""}, 422),
        ({"q": "x" * 1001}, 422),
        ({"q": "x" * 900}, 422),
        ({"q": "x", "limit": 0}, 422),
        ({"q": "x", "weights_version": 9}, 404),
    ],
)
async def test_search_that_cannot_be_answered_is_refused(
    client: Client, params: dict[str, Any], status: int
) -> None:
    assert (await client.get("/facts:search", params=params)).status_code == status


@pytest.mark.parametrize("moment", ["2030-01-01T00:00:00", "2001-01-01T00:00:00Z", "soon", 4102444800])
async def test_expiry_must_be_a_moment_to_come(client: Client, moment: Any) -> None:
    answer = await client.post("/facts", json={"fact": FACT, "expires_at": moment})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "expires_at"


async def test_expiry_is_kept_in_utc(client: Client) -> None:
    moment = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    local = moment.astimezone(timezone(timedelta(hours=5))).isoformat()
    made = await client.post("/facts", json={"fact": FACT, "expires_at": local})
    stored = (await client.get(f"/facts/{made.json()['id']}")).json()
    assert datetime.fromisoformat(stored["expires_at"]) == moment
    assert stored["expires_at"].endswith("Z")
