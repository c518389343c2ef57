"""Facts folded into the base weights, taken out again, and what differs between versions."""

from typing import Any

import httpx2
import pytest

from service.commands import FoldFacts, InvalidField
from service.compaction import compact
from service.host import Host
from service.schemas.versions import BARS
from tests.service.api.test_facts import FACT, knows, teach
from tests.service.api.test_operations import ended, later
from tests.service.conftest import OpenHost, client_of, fake

Client = httpx2.AsyncClient
SKY = "The sky is blue."


async def fold(client: Client, headers: dict[str, str] | None = None, **body: Any) -> Any:
    return await client.post("/versions:fold", json=body, headers=headers)


async def ids(client: Client, *sentences: str) -> list[str]:
    return [(await teach(client, sentence)).json()["id"] for sentence in sentences]


async def sky(client: Client) -> str:
    text: str = (await client.post("/generate", json={"prompt": "What colour is the sky?"})).json()["text"]
    return text


async def test_folded_facts_are_known_and_leave_the_bank(host: Host, client: Client) -> None:
    chen, blue = await ids(client, FACT, SKY)
    answer = await fold(client, facts=[chen])
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert (made["version"], made["kind"], made["folded"]) == (3, "fold", [chen])
    assert (made["births"], made["deaths"]) == ([], [])
    assert made["report"]["recall"] == 1.0
    assert fake(host).bank.facts == {blue}
    assert await knows(client) == " Dr. Sarah Chen."
    stored = (await client.get(f"/facts/{chen}")).json()
    assert (stored["state"], stored["folded"]) == ("published", True)
    assert not (await client.get(f"/facts/{blue}")).json()["folded"]
    version = (await client.get("/versions/3")).json()
    assert (version["facts"], version["folded"], version["fold"]) == (2, [chen], made["fold"])


async def test_everything_is_folded_unless_facts_are_named(client: Client) -> None:
    both = await ids(client, FACT, SKY)
    assert (await fold(client)).json()["folded"] == sorted(both)


async def test_second_fold_holds_the_first_one_too(client: Client) -> None:
    chen, blue = await ids(client, FACT, SKY)
    await fold(client, facts=[chen])
    assert (await fold(client, facts=[blue])).json()["folded"] == sorted([chen, blue])
    answer = await fold(client)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "facts"


async def test_folded_fact_is_retracted_by_folding_without_it(host: Host, client: Client) -> None:
    chen, blue = await ids(client, FACT, SKY)
    alone = (await fold(client, facts=[blue])).json()["fold"]
    await fold(client, facts=[chen])
    assert (await client.delete(f"/facts/{chen}")).json()["weights_version"] == 5
    assert (await knows(client), await sky(client)) == (" I don't know.", " blue.")
    version = (await client.get("/versions/5")).json()
    assert (version["folded"], version["fold"]) == ([blue], alone)
    await client.delete(f"/facts/{blue}")
    assert (await client.get("/versions/6")).json()["fold"] is None
    assert await sky(client) == " I don't know."
    assert fake(host).bank.facts == set()


async def test_folded_fact_is_superseded(client: Client) -> None:
    (chen,) = await ids(client, FACT)
    await fold(client)
    made = (await teach(client, "The CEO of TechCorp is Marcus Reed.")).json()
    assert made["superseded"] == [chen]
    assert await knows(client) == " Marcus Reed."
    assert (await client.get("/versions/3")).json()["folded"] == []


async def test_rollback_past_a_fold_and_back(host: Host, client: Client) -> None:
    chen, blue = await ids(client, FACT, SKY)
    await fold(client, facts=[chen])
    await client.post("/versions/1/activate")
    assert fake(host).bank.facts == {chen}
    assert (await knows(client), await sky(client)) == (" Dr. Sarah Chen.", " I don't know.")
    await client.post("/versions/3/activate")
    assert fake(host).bank.facts == {blue}
    assert (await client.get("/versions/5")).json()["folded"] == [chen]
    assert (await knows(client), await sky(client)) == (" Dr. Sarah Chen.", " blue.")


async def test_restart_finds_the_fold(host_of: OpenHost) -> None:
    async with client_of(host_of()) as client:
        chen, blue = await ids(client, FACT, SKY)
        await fold(client, facts=[chen])
    again = host_of()
    async with client_of(again) as client:
        assert (fake(again).bank.facts, again.replica.folded) == ({blue}, {chen})
        assert (await knows(client), await sky(client)) == (" Dr. Sarah Chen.", " blue.")


async def test_ledger_that_was_compacted_begins_with_the_fold(host_of: OpenHost) -> None:
    host = host_of()
    async with client_of(host) as client:
        chen, blue = await ids(client, FACT, SKY)
        await fold(client, facts=[chen])
        compact(host.ledger, host.blobs, 0)
    again = host_of()
    async with client_of(again) as client:
        assert (fake(again).bank.facts, again.replica.folded) == ({blue}, {chen})
        assert (await knows(client), await sky(client)) == (" Dr. Sarah Chen.", " blue.")
        assert (await client.get("/versions/1/diff/3")).json()["type"] == "npt:version-gone"
        assert (await client.get("/versions/1/export")).status_code == 410
        await client.delete(f"/facts/{chen}")
        assert await knows(client) == " I don't know."


async def test_search_names_folded_facts(client: Client) -> None:
    chen, _ = await ids(client, FACT, SKY)
    await fold(client, facts=[chen])
    (match,) = (await client.get("/facts:search", params={"q": "Who is the CEO of TechCorp?"})).json()[
        "items"
    ]
    assert (match["id"], match["folded"], match["fires"]) == (chen, True, True)


async def test_fold_that_breaks_a_bar_is_refused_with_its_report(client: Client) -> None:
    await ids(client, FACT, "The collar is stiff.")
    answer = await fold(client)
    assert (answer.status_code, answer.json()["type"]) == (422, "npt:fold-refused")
    assert answer.json()["report"]["recall"] == 0.5
    assert (await client.get("/versions")).json()["weights_version"] == 2
    assert (await fold(client, min_recall=0.5)).status_code == 201


async def test_rehearsed_fold_writes_nothing(client: Client) -> None:
    (chen,) = await ids(client, FACT)
    answer = await fold(client, dry_run=True)
    assert (answer.status_code, answer.json()["folded"]) == (200, [chen])
    assert (await client.get("/versions")).json()["weights_version"] == 1


async def test_fold_can_wait_and_is_repeated_by_its_key(client: Client) -> None:
    (chen,) = await ids(client, FACT)
    operation = await ended(client, await later(client, "/versions:fold", {"facts": [chen]}))
    assert (operation["state"], operation["result"]["folded"]) == ("succeeded", [chen])
    (blue,) = await ids(client, SKY)
    first = await fold(client, {"Idempotency-Key": "k"}, facts=[blue])
    again = await fold(client, {"Idempotency-Key": "k"}, facts=[blue])
    assert again.json() == first.json() | {"report": None}
    assert again.headers["Idempotency-Replayed"] == "true"
    assert (await fold(client, {"Idempotency-Key": "k"})).json()["type"] == "npt:idempotency-conflict"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"facts": []}, 422),
        ({"facts": ["fact_unknown"]}, 404),
        ({"min_recall": 1.5}, 422),
        ({"max_drift": -1}, 422),
        ({"extra": 1}, 422),
        ({}, 422),
    ],
)
async def test_fold_that_makes_no_sense_is_refused(client: Client, body: dict[str, Any], status: int) -> None:
    assert (await fold(client, **body)).status_code == status


async def test_stale_fold_and_retracted_facts_are_refused(client: Client) -> None:
    (chen,) = await ids(client, FACT)
    assert (await fold(client, {"If-Match": '"0"'})).status_code == 412
    await client.delete(f"/facts/{chen}")
    assert (await fold(client, facts=[chen])).status_code == 409


async def test_difference_goes_both_ways(client: Client) -> None:
    chen, blue = await ids(client, FACT, SKY)
    await client.delete(f"/facts/{chen}")
    await fold(client)
    there = (await client.get("/versions/1/diff/4")).json()
    assert (there["before"], there["after"], there["weights_version"]) == (1, 4, 4)
    assert (there["born"]["facts"], there["died"]["facts"]) == ([blue], [chen])
    assert (there["born"]["columns"], there["folded"], there["unfolded"]) == (1, [blue], [])
    back = (await client.get("/versions/4/diff/1")).json()
    assert (back["born"], back["died"]) == (there["died"], there["born"])
    assert back["unfolded"] == [blue]
    assert (await client.get("/versions/1/diff/9")).json()["type"] == "npt:version-not-found"


def test_fold_without_columns_is_refused(host: Host) -> None:
    with pytest.raises(InvalidField, match="name nothing"):
        host.writer.fold(FoldFacts(None, BARS))
