import asyncio
import contextlib
import json
import threading
from collections.abc import Coroutine
from typing import Any

import httpx2
import pytest

from service.app import create_app
from service.host import Host
from tests.service.conftest import OpenHost, client_of, fake, settled

FACT = "The CEO of TechCorp is Dr. Sarah Chen."
RUMOUR = f"The CEO of TechCorp is {'Nobody ' * 30}else."
QUESTION = "Who is the CEO of TechCorp?"
PROMPT = {"prompt": QUESTION}
Client = httpx2.AsyncClient


async def ask(client: Client, **body: Any) -> Any:
    answer = await client.post("/generate", json={"prompt": QUESTION} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def between_steps(host: Host, work: Coroutine[Any, Any, Any]) -> Any:
    """What `work` returns; steps of the engine wait for permits, and get one where work waits for a step."""
    model, task = fake(host).model, asyncio.create_task(work)
    assert model.gate is not None
    while not task.done():
        if host.engine._background.pending:
            model.gate.release()
        await asyncio.sleep(0.001)
    return await task


async def teach(client: Client, fact: str = FACT) -> Any:
    return (await client.post("/facts", json={"fact": fact})).json()


def events(text: str) -> list[tuple[str, Any]]:
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data[6:])) for name, data in blocks]


async def streamed(client: Client, **body: Any) -> list[tuple[str, Any]]:
    answer = await client.post("/generate", json={"prompt": QUESTION, "stream": True} | body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    return events(answer.text)


async def test_answer_has_its_parts(client: Client) -> None:
    answer = await ask(client)
    assert answer["text"] == " I don't know."
    assert answer["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": len(QUESTION), "completion_tokens": 14}
    assert answer["weights_version"] == 0
    timings = answer["timings"]
    assert 0 <= timings["queue_ms"] <= timings["first_token_ms"] <= timings["total_ms"]
    assert set(answer) == {
        "id",
        "text",
        "finish_reason",
        "usage",
        "weights_version",
        "timings",
    }


@pytest.mark.parametrize("context", [FACT, [FACT], ["The sky is blue.", FACT]])
async def test_fact_is_read_from_the_context(client: Client, context: Any) -> None:
    assert (await ask(client, context=context))["text"] == " Dr. Sarah Chen."


async def test_fact_is_known_without_context_once_taught(client: Client) -> None:
    await teach(client)
    answer = await client.post("/generate", json={"prompt": QUESTION})
    assert answer.json()["text"] == " Dr. Sarah Chen."
    assert answer.json()["weights_version"] == 1
    assert answer.headers["X-NPT-Weights-Version"] == "1"


async def test_older_version_can_be_asked(client: Client) -> None:
    await teach(client)
    answer = await client.post("/generate", json={"prompt": QUESTION, "weights_version": 0})
    assert answer.json()["text"] == " I don't know."
    assert answer.json()["weights_version"] == 0
    assert answer.headers["X-NPT-Weights-Version"] == "0"


async def test_unknown_version_is_not_found(client: Client) -> None:
    answer = await client.post("/generate", json={"prompt": QUESTION, "weights_version": 7})
    assert answer.status_code == 404
    assert answer.json()["type"] == "npt:version-not-found"


async def test_version_that_is_no_longer_kept_is_gone(host_of: OpenHost) -> None:
    host = host_of(keep_versions=1)
    async with client_of(host) as client:
        for number in range(3):
            await teach(client, f"The X{number} is Y.")
        settled(host)
        assert (await ask(client, weights_version=2))["weights_version"] == 2
        answer = await client.post("/generate", json={"prompt": QUESTION, "weights_version": 1})
    assert answer.status_code == 410
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == "npt:version-gone"
    numbers = [problem[name] for name in ("asked_version", "oldest_version", "weights_version")]
    assert numbers == [1, 2, 3]


async def test_version_of_a_running_answer_is_kept_until_it_ends(host_of: OpenHost) -> None:
    host = host_of(keep_versions=0)
    bank, model = fake(host).bank, fake(host).model
    async with client_of(host) as client:
        fact_id = (await teach(client, RUMOUR))["id"]
        model.gate = threading.Semaphore(0)
        running = asyncio.create_task(ask(client, max_new_tokens=500))
        await asyncio.to_thread(model.entered.acquire)
        await between_steps(host, client.delete(f"/facts/{fact_id}"))
        await between_steps(host, teach(client, "The X is Y."))
        assert bank.sentences(1) == [RUMOUR]
        model.gate.release(1000)
        assert (await running)["text"].strip() in RUMOUR
        await teach(client, "The Z is Y.")
        settled(host)
        assert bank.sentences(1) == []


async def test_request_keeps_its_version_while_a_fact_lands(host: Host, client: Client) -> None:
    model = fake(host).model
    model.gate = threading.Semaphore(0)
    running = asyncio.create_task(ask(client, context=RUMOUR, max_new_tokens=300))
    await asyncio.to_thread(model.entered.acquire)
    assert (await between_steps(host, teach(client)))["weights_version"] == 1
    assert not running.done()
    model.gate.release(1000)
    answer = await running
    assert answer["text"].startswith(" Nobody")
    assert answer["weights_version"] == 0
    assert (await ask(client))["text"] == " Dr. Sarah Chen."


async def test_min_version_waits_for_the_write(host: Host, client: Client) -> None:
    consolidator = fake(host).consolidator
    consolidator.gate = threading.Semaphore(0)
    write = asyncio.create_task(teach(client))
    await asyncio.to_thread(consolidator.entered.acquire)
    waiting = asyncio.create_task(ask(client, min_weights_version=1))
    await asyncio.sleep(0)
    consolidator.gate.release()
    await write
    assert (await waiting)["text"] == " Dr. Sarah Chen."


async def test_min_version_that_does_not_come_is_unavailable(host_of: OpenHost) -> None:
    async with client_of(host_of(version_wait_s=0)) as client:
        answer = await client.post("/generate", json={"prompt": QUESTION, "min_weights_version": 1})
    assert answer.status_code == 503
    assert answer.json()["type"] == "npt:version-not-reached"
    assert int(answer.headers["Retry-After"]) > 0


@pytest.mark.parametrize(
    ("stop", "text"), [("Sarah", " Dr. "), (["zzz", "r. S"], " D"), ("?", " Dr. Sarah Chen.")]
)
async def test_answer_ends_before_a_stop_string(client: Client, stop: Any, text: str) -> None:
    answer = await ask(client, context=FACT, stop=stop)
    assert (answer["text"], answer["finish_reason"]) == (text, "stop")
    pieces = await streamed(client, context=FACT, stop=stop)
    assert "".join(data["text"] for name, data in pieces if name == "token") == text
    assert pieces[-1][1]["text"] == text


async def test_answer_is_cut_at_max_new_tokens(client: Client) -> None:
    answer = await ask(client, max_new_tokens=3)
    assert (answer["text"], answer["finish_reason"]) == (" I ", "length")


async def test_seed_gives_the_same_text_again(client: Client) -> None:
    wild = {"temperature": 5.0, "seed": 3, "max_new_tokens": 30}
    first, again, other = [await ask(client, **wild | {"seed": s}) for s in (3, 3, 4)]
    assert first["text"] == again["text"] != other["text"]


async def test_several_sequences_are_drawn(client: Client) -> None:
    wild = {"temperature": 5.0, "seed": 3, "max_new_tokens": 20}
    answer = await ask(client, **wild, n=3)
    alone = [(await ask(client, **wild | {"seed": 3 + i}))["text"] for i in range(3)]
    assert [choice["text"] for choice in answer["choices"]] == alone
    assert answer["text"] == alone[0]


async def test_logprobs_come_with_their_tokens(client: Client) -> None:
    answer = await ask(client, logprobs=2, max_new_tokens=2)
    assert [entry["token"] for entry in answer["logprobs"]] == [" ", "I"]
    for entry in answer["logprobs"]:
        assert len(entry["top"]) == 2
        assert entry["top"][0]["logprob"] == entry["logprob"] < 0


@pytest.mark.parametrize("more", [{}, {"n": 2, "temperature": 4.0, "seed": 1}, {"logprobs": 1}])
async def test_stream_tells_what_the_whole_answer_tells(client: Client, more: Any) -> None:
    pieces = await streamed(client, **more)
    whole = await ask(client, **more)
    name, last = pieces[-1]
    assert name == "done"
    assert [name for name, _ in pieces[:-1]] == ["token"] * (len(pieces) - 1)
    for index, choice in enumerate(whole.get("choices") or [whole]):
        own = [data for _, data in pieces[:-1] if data["index"] == index]
        assert "".join(data["text"] for data in own) == choice["text"]
        if "logprobs" in more:
            assert [entry for data in own for entry in data["logprobs"]] == choice["logprobs"]
    for key in ("text", "finish_reason", "usage", "weights_version"):
        assert last[key] == whole[key]


async def test_characters_are_never_cut_in_two(client: Client) -> None:
    name = "The name of the café is Zoë 🌍 Łódź."
    pieces = await streamed(client, prompt="What is the name of the café?", context=name)
    texts = [data["text"] for event, data in pieces if event == "token"]
    assert "".join(texts) == " Zoë 🌍 Łódź."
    assert not any("\ufffd" in text for text in texts)


async def test_engine_failure_is_a_problem_and_the_next_answer_comes(host: Host, client: Client) -> None:
    fake(host).model.fails = True
    answer = await client.post("/generate", json={"prompt": QUESTION})
    assert answer.status_code == 500
    assert answer.json()["type"] == "npt:internal-error"
    assert [name for name, _ in await streamed(client)] == ["error"]
    fake(host).model.fails = False
    assert (await ask(client))["text"] == " I don't know."


async def test_full_queue_is_overload(host_of: OpenHost) -> None:
    host = host_of(max_concurrency=1, queue_size=0)
    model = fake(host).model
    model.gate = threading.Semaphore(0)
    async with client_of(host) as client:
        running = asyncio.create_task(ask(client))
        await asyncio.to_thread(model.entered.acquire)
        refused = await client.post("/generate", json={"prompt": QUESTION})
        model.gate.release(1000)
        await running
    assert refused.status_code == 503
    assert refused.json()["type"] == "npt:overloaded"
    assert "Retry-After" in refused.headers


async def test_prompt_that_does_not_fit_is_refused(client: Client) -> None:
    answer = await client.post("/generate", json={"prompt": "a" * 600})
    assert answer.status_code == 422
    assert answer.json()["type"] == "npt:prompt-too-long"
    assert "600 tokens, at most 599" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "a\0b"}, "prompt"),
        ({"context": [1]}, "context.0"),
        ({"context": {"a": 1}}, "context"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": "5"}, "max_new_tokens"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ""}, "stop.0"),
        ({"stop": ["a"] * 9}, "stop"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"logprobs": 21}, "logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"weights_version": -1}, "weights_version"),
        ({"modulation_scale": -1}, "modulation_scale"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"weights_version": 1, "min_weights_version": 2}, "body"),
    ],
)
async def test_field_that_does_not_fit_is_named(client: Client, body: Any, field: str) -> None:
    answer = await client.post("/generate", json={"prompt": QUESTION} | body)
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["type"] == "npt:invalid-request"
    assert [entry["field"] for entry in problem["errors"]] == [field]
    assert problem["errors"][0]["reason"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_numbers_that_are_none_are_refused(client: Client, number: str) -> None:
    answer = await client.post(
        "/generate",
        content=f'{{"prompt": "a", "temperature": {number}}}',
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "temperature"


@pytest.mark.parametrize("stream", [False, True])
async def test_client_that_leaves_ends_the_work(host: Host, stream: bool) -> None:
    """Through the bare ASGI interface: the client goes as soon as decoding has begun."""
    model = fake(host).model
    model.gate = threading.Semaphore(0)
    gone = asyncio.Event()
    app = create_app(host)
    answering = asyncio.create_task(app(scope_of("/generate"), *leaving(PROMPT | {"stream": stream}, gone)))
    await asyncio.to_thread(model.entered.acquire)
    # Whoever hears of the disconnect has cancelled by the time the loop comes round again.
    gone.set()
    for _ in range(20):
        await asyncio.sleep(0)
    model.gate.release(1000)
    with contextlib.suppress(Exception):  # A stream ends with an error that nobody reads.
        await answering
    while host.engine.running:
        await asyncio.sleep(0)
    assert model.forwards <= 2


def leaving(body: Any, gone: asyncio.Event) -> tuple[Any, Any]:
    """A client that sends `body` and, once `gone` is set, is there no more."""
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        if gone.is_set():
            raise OSError("the connection is closed")

    return receive, send


def scope_of(path: str) -> Any:
    return {
        "type": "http",
        # What uvicorn says: a response then listens for the disconnect while it sends.
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "server": ("localhost", 80),
        "client": ("127.0.0.1", 1),
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
    }
