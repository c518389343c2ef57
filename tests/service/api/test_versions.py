import httpx2
import pytest

Client = httpx2.AsyncClient
QUESTION = "Who is the CEO of TechCorp?"


async def teach(client: Client, fact: str = "The CEO of TechCorp is Dr. Sarah Chen.") -> str:
    answer = await client.post("/facts", json={"fact": fact})
    made: str = answer.json()["id"]
    return made


async def knows(client: Client) -> str:
    text: str = (await client.post("/generate", json={"prompt": QUESTION})).json()["text"]
    return text


async def test_history_begins_with_the_base(client: Client) -> None:
    page = (await client.get("/versions")).json()
    (base,) = page["items"]
    assert (base["version"], base["parent"], base["kind"]) == (0, None, "base")
    assert page["weights_version"] == 0


async def test_each_change_is_a_version(client: Client) -> None:
    fact_id = await teach(client)
    await client.delete(f"/facts/{fact_id}")
    items = (await client.get("/versions")).json()["items"]
    assert [item["kind"] for item in items] == ["base", "fact", "retract"]
    assert items[1]["births"] == items[2]["deaths"] == [fact_id]
    assert [item["parent"] for item in items] == [None, 0, 1]
    assert len({item["chain"] for item in items}) == 3


async def test_version_says_how_many_facts_it_knows(client: Client) -> None:
    await teach(client)
    await teach(client, "The sky is blue.")
    assert (await client.get("/versions/1")).json()["facts"] == 1
    newest = (await client.get("/versions/2")).json()
    assert (newest["facts"], newest["weights_version"]) == (2, 2)


async def test_rollback_is_a_new_version_that_knows_what_the_old_one_knew(client: Client) -> None:
    fact_id = await teach(client)
    back = await client.post("/versions/0/activate")
    assert back.status_code == 201
    made = back.json()
    assert (made["version"], made["kind"], made["target"]) == (2, "rollback", 0)
    assert (made["deaths"], made["weights_version"]) == ([fact_id], 2)
    assert await knows(client) == " I don't know."
    forward = (await client.post("/versions/1/activate")).json()
    assert (forward["version"], forward["births"]) == (3, [fact_id])
    assert await knows(client) == " Dr. Sarah Chen."
    assert (await client.get(f"/facts/{fact_id}")).json()["state"] == "published"


async def test_returned_fact_can_be_retracted_again(client: Client) -> None:
    fact_id = await teach(client)
    await client.delete(f"/facts/{fact_id}")
    await client.post("/versions/1/activate")
    assert (await client.delete(f"/facts/{fact_id}")).json()["weights_version"] == 4
    assert await knows(client) == " I don't know."


@pytest.mark.parametrize(("method", "path"), [("GET", "/versions/1"), ("POST", "/versions/1/activate")])
async def test_unknown_version_is_not_found(client: Client, method: str, path: str) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == 404
    assert answer.json()["type"] == "npt:version-not-found"


@pytest.mark.parametrize("number", ["-1", "x", "1.5", "9" * 30])
async def test_number_that_is_none_is_named(client: Client, number: str) -> None:
    answer = await client.post(f"/versions/{number}/activate")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "version"


async def test_stale_activation_is_refused(client: Client) -> None:
    await teach(client)
    stale = await client.post("/versions/0/activate", headers={"If-Match": '"0"'})
    assert stale.status_code == 412
    assert (await client.get("/versions")).json()["weights_version"] == 1


@pytest.mark.parametrize("newest_first", [False, True])
async def test_versions_come_in_pages(client: Client, newest_first: bool) -> None:
    for number in range(4):
        await teach(client, f"The X{number} is Y.")
    order = f"limit=3&newest_first={newest_first}"
    first = (await client.get(f"/versions?{order}")).json()
    rest = (await client.get(f"/versions?{order}&cursor={first['next_cursor']}")).json()
    numbers = [0, 1, 2, 3, 4]
    expected = numbers[::-1] if newest_first else numbers
    assert [item["version"] for item in first["items"] + rest["items"]] == expected
    assert rest["next_cursor"] is None
