"""A load of equal streams on a running server, and what its clients see."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx2

from npt_core.bench.figures import Figures, Timeline
from npt_core.bench.interference import written
from npt_core.bench.rows import SERVER, SERVER_WRITING
from service.cli.client import Client, ClientError, connected

NEW_TOKENS = 64
PROMPT_WORDS = 16
"""About 64 tokens of the reference tokenizer: words it has never seen are cut small."""
_PAUSE_S = 0.1
"""After a refusal, so that an overloaded server is not asked in a tight loop."""
_SYLLABLES = ("ba", "ko", "ri", "ten", "mu", "sol", "dar", "vi", "nel", "go")


@dataclass
class _Tally:
    """What all streams together were answered."""

    answers: list[Timeline] = field(default_factory=list)
    tokens: int = 0
    errors: Counter[str] = field(default_factory=Counter)


@dataclass
class _Writes:
    """Facts that landed, those that did not by reason, and the seconds each took."""

    written: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


async def measure_server(
    url: str,
    streams: Sequence[int],
    seconds: float,
    writes: bool = False,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> dict[str, Any]:
    """Figures of the server at `url` by number of streams; with `writes` also beside a fact a second.

    The facts stay on the server. Raises ClientError where it cannot be talked to at all.
    """
    loads: dict[str, list[dict[str, Any]]] = {SERVER: []}
    results: dict[str, Any] = {"conditions": {"url": url}, "loads": loads}
    async with connected(url, transport) as client:
        await client.call("GET", "/readyz")
        for count in streams:
            loads[SERVER].append(await _measure(client, count, seconds))
            if writes:
                async with _writer(client) as done:
                    loads.setdefault(SERVER_WRITING, []).append(await _measure(client, count, seconds))
                outcome = written(count, done.written, dict(done.refused), done.seconds)
                results.setdefault("writing", []).append(outcome)
    return results


async def _measure(client: Client, streams: int, seconds: float) -> dict[str, Any]:
    """`streams` clients, each of which asks again as soon as it is answered, for `seconds`.

    A token is marked when its text arrives, which the server holds back while a character is
    incomplete; they are counted as the server counts them.
    """
    await _stream(client, _Tally(), random.Random(), until=0.0)  # to warm up
    tally, begin = _Tally(), time.perf_counter()
    draws = [random.Random(f"{streams} {number}") for number in range(streams)]
    await asyncio.gather(*(_stream(client, tally, draw, begin + seconds) for draw in draws))
    figures = Figures.of(streams, tally.answers, time.perf_counter() - begin, tally.tokens)
    answered = len(tally.answers)
    return {
        **asdict(figures),
        "answers": answered,
        "tokens_per_answer": tally.tokens / answered if answered else None,
        "errors": dict(tally.errors),
    }


async def _stream(client: Client, tally: _Tally, draw: random.Random, until: float) -> None:
    """One request after the other; the last one begins before `until`."""
    while True:
        try:
            await _ask(client, tally, _prompt(draw))
        except (ClientError, httpx2.HTTPError) as error:
            tally.errors[_reason(error)] += 1
            await asyncio.sleep(_PAUSE_S)
        if time.perf_counter() >= until:
            return


async def _ask(client: Client, tally: _Tally, prompt: str) -> None:
    """One streamed answer, noted once it is whole. Raises ClientError where it does not become so."""
    timeline = Timeline()
    body = {"prompt": prompt, "max_new_tokens": NEW_TOKENS, "stream": True}
    async for name, event in client.stream("/generate", body):
        if name == "token":
            timeline.mark()
        elif name == "error":
            raise ClientError(event["title"], f"{event['status']} {event['type']}, midway")
        elif name == "done":
            tally.answers.append(timeline)
            tally.tokens += event["usage"]["completion_tokens"]
            return
    raise ClientError("the stream broke off")


@asynccontextmanager
async def _writer(client: Client) -> AsyncIterator[_Writes]:
    """Within the block, a fact is begun every second, or as soon as the last one is done.

    The last one is waited for: its time counts, too.
    """
    done, stop = _Writes(), asyncio.Event()
    task = asyncio.create_task(_write(client, done, stop))
    try:
        yield done
    finally:
        stop.set()
        await task


async def _write(client: Client, done: _Writes, stop: asyncio.Event) -> None:
    draw = random.Random()  # other facts with every run: the server keeps them
    while not stop.is_set():
        begin = time.perf_counter()
        first, second, value = (_word(draw).capitalize() for _ in range(3))
        body = {"fact": f"The capital of {first} {second} is {value}."}
        try:
            await client.call("POST", "/facts", body)
            done.written += 1
        except (ClientError, httpx2.HTTPError) as error:
            done.refused[_reason(error)] += 1
        done.seconds.append(time.perf_counter() - begin)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), max(1.0 - done.seconds[-1], 0.0))


def _reason(error: Exception) -> str:
    """What errors are counted by."""
    if isinstance(error, ClientError):
        return error.kind or str(error)
    return type(error).__name__


def _prompt(draw: random.Random) -> str:
    """Made-up words: nothing is shared, so no cache helps, and the model goes on instead of ending."""
    return " ".join(_word(draw) for _ in range(PROMPT_WORDS))


def _word(draw: random.Random) -> str:
    return "".join(draw.choices(_SYLLABLES, k=draw.randint(2, 3)))
