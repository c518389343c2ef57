"""Many connections at once, over real sockets: all are told, and nothing stays behind."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
import uvicorn

from npt_core.engine import Engine, Event, FinishEvent, FinishReason, Stream
from service.app import create_app
from service.host import Host
from tests.npt_core.engine.census import alive, is_idle, resident_bytes
from tests.service.conftest import OpenHost, fake

RUNNING, QUEUE = 64, 256
PROMPT = {"prompt": "Who is the CEO of TechCorp?"}
MAY_GROW = 16 * 2**20
"""What the allocators may keep of a thousand connections, both ends of which are in this process."""


@contextmanager
def served(host: Host) -> Iterator[str]:
    """The address of `host`, served by a thread on a port of its own."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    server = uvicorn.Server(uvicorn.Config(create_app(host), log_config=None, server_header=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def connected(url: str) -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    return httpx2.AsyncClient(base_url=url, timeout=None, limits=limits, trust_env=False)


async def until(engine: Engine, sequences: int) -> None:
    """Wait for so many to be admitted and not ended; pytest's timeout is the limit."""
    while engine.running + engine.waiting != sequences:
        await asyncio.sleep(0.01)


async def rush(url: str, host: Host, count: int) -> list[httpx2.Response]:
    """`count` requests at once; no step is computed before all of them are admitted or refused."""
    model = fake(host).model
    model.gate = threading.Semaphore(0)
    async with connected(url) as client:
        unanswered = {asyncio.ensure_future(client.post("/generate", json=PROMPT)) for _ in range(count)}
        answered = set[asyncio.Future[httpx2.Response]]()
        while len(answered) < count - RUNNING - QUEUE:
            done, unanswered = await asyncio.wait(unanswered, return_when=asyncio.FIRST_COMPLETED)
            answered |= done
        await until(host.engine, RUNNING + QUEUE)
        model.gate.release(10_000)
        return [*(task.result() for task in answered), *await asyncio.gather(*unanswered)]


async def test_a_thousand_connections_are_answered_or_told_to_come_back(
    host_of: OpenHost, stress: bool
) -> None:
    host = host_of(max_concurrency=RUNNING, queue_size=QUEUE)
    memory, count = [], 1000 if stress else 400
    with served(host) as url:
        for _ in range(8 if stress else 3):
            answers = await rush(url, host, count)
            refused = [answer for answer in answers if answer.status_code == 503]
            assert len(refused) == count - RUNNING - QUEUE
            for answer in refused:
                assert answer.json()["type"] == "npt:overloaded"
                assert int(answer.headers["Retry-After"]) > 0
            for answer in answers:
                if answer not in refused:
                    assert answer.status_code == 200
                    assert answer.json()["text"] == " I don't know."
                    assert answer.json()["finish_reason"] == "stop"
            assert is_idle(host.engine)
            memory.append(resident_bytes())
    assert memory[-1] - memory[1] < MAY_GROW, memory


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[FinishReason]:
    """Why sequences ended, as the engine tells it."""
    told: list[FinishReason] = []
    put = Stream.put

    def observed(stream: Stream, event: Event) -> None:
        if isinstance(event, FinishEvent):
            told.append(event.reason)
        put(stream, event)

    monkeypatch.setattr(Stream, "put", observed)
    return told


async def read_a_token(client: httpx2.AsyncClient, heard: asyncio.Semaphore, leave: asyncio.Event) -> None:
    """A client that hears the first token of a stream and closes the connection when told."""
    async with client.stream("POST", "/generate", json=PROMPT | {"stream": True}) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                assert json.loads(line.removeprefix("data: "))["index"] == 0
                heard.release()
                await leave.wait()
                return


async def wait_for_all(client: httpx2.AsyncClient) -> None:
    await client.post("/generate", json=PROMPT)


async def leave_in_the_middle(url: str, host: Host, count: int, streams: list[Stream]) -> None:
    """`count` clients of streams and as many of whole answers, who all go after the first token."""
    model = fake(host).model
    model.gate = threading.Semaphore(0)
    heard, leave = asyncio.Semaphore(0), asyncio.Event()
    async with connected(url) as client:
        readers = [asyncio.create_task(read_a_token(client, heard, leave)) for _ in range(count)]
        waiters = [asyncio.create_task(wait_for_all(client)) for _ in range(count)]
        await until(host.engine, 2 * count)
        model.gate.release(4)  # of the 15 steps that an answer takes
        for _ in range(count):
            await heard.acquire()
        leave.set()
        for waiter in waiters:
            waiter.cancel()
        await asyncio.gather(*readers)
        await asyncio.gather(*waiters, return_exceptions=True)
        while not all(stream.is_cancelled(0) for stream in streams):
            await asyncio.sleep(0.01)
        model.gate.release(10_000)
        await until(host.engine, 0)


async def test_clients_that_leave_in_the_middle_free_what_they_held(
    host_of: OpenHost, monkeypatch: pytest.MonkeyPatch, ends: list[FinishReason], stress: bool
) -> None:
    count, rounds = 150, 8 if stress else 2
    host = host_of(max_concurrency=2 * count, batch_tokens=2 * count * 32)
    before, memory, streams = alive(), [], list[Stream]()
    submit = host.engine.submit

    def observed(*args: Any) -> Stream:
        streams.append(submit(*args))
        return streams[-1]

    monkeypatch.setattr(host.engine, "submit", observed)
    with served(host) as url:
        for _ in range(rounds):
            await leave_in_the_middle(url, host, count, streams)
            assert is_idle(host.engine)
            streams.clear()
            memory.append(resident_bytes())
        assert await asyncio.to_thread(lambda: httpx2.post(f"{url}/generate", json=PROMPT).status_code) == 200
    streams.clear()
    assert ends == [FinishReason.CANCELLED] * 2 * count * rounds + [FinishReason.STOP]
    assert memory[-1] - memory[0] < MAY_GROW, memory
    found = alive()
    assert {kind: found[kind] for kind in ("Sequence", "Stream", "Sampler")} == dict.fromkeys(
        ("Sequence", "Stream", "Sampler"), 0
    )
    assert found["threads"] <= before["threads"], "the server's thread, the engine's, those of the pool"
