"""Many clients with keys at once, reading and writing, on a server with a model: what they count is what the
server's metrics say, nothing is answered that is not documented, and memory stays.
"""

import asyncio
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx2
import psutil
from prometheus_client.parser import text_string_to_metric_families

from service.ledger import Ledger, sqlite_url
from service.ledger.api_keys import ApiKeys, Scope
from service.stores import LEDGER_FILE
from torture.clients import Subject
from torture.fuzz.server import ModelServer

TIMEOUT_S = 300.0
RATE_A_MINUTE = 30
"""Of the key whose requests are refused now and then."""
SAMPLE_S = 2.0
WARM_UP = 0.2
"""Of the time: caches fill."""
JUDGED_S = 120.0
"""The shortest run whose memory is judged: before, caches fill."""
GROWS_MIB, GROWS_MIB_A_MINUTE = 15.0, 3.0
"""In the second half of a run, whichever is more: 1.5 MiB a minute were seen where nothing leaks, and a heap
that takes and gives back 30 MiB within minutes."""
GROWN_MIB = 64.0
"""From the warm-up to the end, however it came."""
UNCOUNTED = {"/metrics", "/readyz", "/openapi.json"}
"""Asked by the harness itself."""
Metric = tuple[str, ...]
"""A name, and the values of its labels."""


@dataclass
class Outcome:
    """What a run saw. Memory in MiB: after the warm-up, at most, at the end; the slope of the second half."""

    clients: int = 0
    requests: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    routes: int = 0
    compared: int = 0
    """Counters of the server that clients can count, too."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    facts: dict[str, int] = field(default_factory=dict)
    warm_mib: float = 0.0
    peak_mib: float = 0.0
    last_mib: float = 0.0
    mib_a_minute: float = 0.0
    problems: list[str] = field(default_factory=list)


@dataclass
class Tally:
    """What the clients counted, by the names of the server's metrics; and what they know of it."""

    documented: Mapping[str, Any]
    counts: Counter[Metric] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    taught: list[tuple[Subject, str, int]] = field(default_factory=list)
    """With the ids of facts, and their versions."""

    def answered(self, method: str, route: str, status: int, text: str) -> None:
        """An answer, whole."""
        self.counts["npt_request_duration_seconds_count", method, route, str(status)] += 1
        if str(status) not in self.documented[route][method.lower()]["responses"]:
            self.problems.append(f"undocumented: {method} {route}: {status} {text[:300]}")
        if status >= 500 and status not in (503, 507):
            self.problems.append(f"failed: {method} {route}: {status} {text[:300]}")

    def generated(self, usage: Mapping[str, int]) -> None:
        """Tokens of an answer."""
        self.counts["npt_prompt_tokens_total",] += usage["prompt_tokens"]
        self.counts["npt_generation_tokens_total",] += usage["completion_tokens"]
        self.counts["npt_time_to_first_token_seconds_count",] += 1

    def wrote(self, result: str, facts: int = 1) -> None:
        """What became of facts."""
        self.counts["npt_facts_total", result] += facts


@dataclass
class Client:
    """One client, with a connection of its own."""

    http: httpx2.AsyncClient
    tally: Tally
    keys: Mapping[str, str]
    name: str
    draw: random.Random
    number: int = 0

    async def run(self, work: Callable[["Client"], Awaitable[None]], until: Callable[[], bool]) -> None:
        """One request after the other."""
        while not until():
            try:
                await work(self)
            except Exception as error:  # a client that ends in silence would count nothing
                self.tally.problems.append(f"client: {self.name}: {error!r}")
                return

    async def ask(
        self, method: str, route: str, body: Any = None, key: str = "all", **more: Any
    ) -> httpx2.Response:
        """A request to a route; names in braces are taken from `path`."""
        headers = {"Authorization": f"Bearer {self.keys[key]}", **more.pop("headers", {})}
        address = route.format(**more.pop("path", {}))
        answer = await self.http.request(method, address, json=body, headers=headers, **more)
        self.tally.answered(method, route, answer.status_code, answer.text)
        return answer

    def subject(self) -> Subject:
        """Something new to teach."""
        self.number += 1
        return Subject.of(f"{self.name}-{self.number}", self.number, exact=False)

    def question(self) -> str:
        """About a fact that was taught, or one that was not."""
        known = self.tally.taught
        return (
            self.draw.choice(known)[0].question
            if known and self.draw.random() < 0.7
            else self.subject().question
        )


async def whole(client: Client) -> None:
    pinned = {}
    if client.tally.taught and client.draw.random() < 0.2:
        pinned = {"weights_version": client.draw.choice(client.tally.taught)[2]}
    answer = await client.ask("POST", "/generate", {"prompt": client.question(), **pinned})
    if answer.status_code == 200:
        client.tally.generated(answer.json()["usage"])
        if pinned and answer.json()["weights_version"] != pinned["weights_version"]:
            client.tally.problems.append(f"mixed: asked for {pinned}, answered {answer.text}")


async def streamed(client: Client) -> None:
    answer = await client.ask("POST", "/generate", {"prompt": client.question(), "stream": True})
    if answer.status_code == 200:
        client.tally.generated(json.loads(answer.text.strip().rpartition("data: ")[2])["usage"])


async def chat(client: Client) -> None:
    said = {"role": "user", "content": client.question()}
    body = {"model": "reference", "messages": [said], "seed": 7, "max_tokens": 16}
    answer = await client.ask("POST", "/v1/chat/completions", body)
    if answer.status_code == 200:
        client.tally.generated(answer.json()["usage"])


async def completions(client: Client) -> None:
    body = {"model": "reference", "prompt": client.question(), "n": 2, "temperature": 0.8, "max_tokens": 8}
    answer = await client.ask("POST", "/v1/completions", body)
    if answer.status_code == 200:
        client.tally.generated(answer.json()["usage"])


async def look(client: Client) -> None:
    """At what is stored."""
    routes = ["/facts", "/versions", "/keys/self", "/v1/models", "/operations", "/audit"]
    if not client.tally.taught or client.draw.random() < 0.6:
        await client.ask("GET", client.draw.choice(routes))
        return
    subject, fact, version = client.draw.choice(client.tally.taught)
    await client.ask("GET", "/facts/{fact_id}", path={"fact_id": fact})
    await client.ask("GET", "/facts:search", params={"q": subject.question})
    await client.ask("GET", "/versions/{version}", path={"version": version})


async def refused(client: Client) -> None:
    """What the service must not do."""
    body = {"prompt": "Who is it?"}
    expected, answer = client.draw.choice(
        [
            (401, partial(client.ask, "POST", "/generate", body, key="none")),
            (403, partial(client.ask, "POST", "/facts", {"fact": "The sky is blue."}, key="reader")),
            (422, partial(client.ask, "POST", "/generate", body | {"max_new_tokens": -1})),
            (400, partial(client.ask, "POST", "/v1/chat/completions", {"model": "reference"})),
            (404, partial(client.ask, "GET", "/facts/{fact_id}", path={"fact_id": "nothing"})),
            (404, partial(client.ask, "POST", "/generate", body | {"weights_version": 10**6})),
            (
                412,
                partial(
                    client.ask,
                    "DELETE",
                    "/facts/{fact_id}",
                    path={"fact_id": "nothing"},
                    headers={"If-Match": '"999999"'},
                ),
            ),
        ]
    )
    if (status := (await answer()).status_code) != expected:
        client.tally.problems.append(f"refused: {status} instead of {expected}")


async def limited(client: Client) -> None:
    """By a key that allows few requests a minute."""
    answer = await client.ask("GET", "/versions", key="limited")
    if answer.status_code not in (200, 429):
        client.tally.problems.append(f"refused: {answer.status_code} instead of 429")


async def read(client: Client) -> None:
    """Mostly answers."""
    every = (whole, streamed, chat, completions, look, refused, limited)
    await client.draw.choices(every, (40, 20, 10, 5, 15, 8, 2))[0](client)


async def teach(client: Client) -> None:
    """A fact under a key, which is repeated now and then."""
    subject, headers = client.subject(), {"Idempotency-Key": f"{client.name}-{client.number}"}
    answer = await client.ask("POST", "/facts", {"fact": subject.sentence}, headers=headers)
    if answer.status_code == 503:
        return
    kind = answer.json().get("type")
    client.tally.wrote(_RESULTS.get(kind, "published"))
    if answer.status_code == 201:
        made = answer.json()
        client.tally.taught.append((subject, made["id"], made["weights_version"]))
        if client.draw.random() < 0.3:
            again = await client.ask("POST", "/facts", {"fact": subject.sentence}, headers=headers)
            if (again.status_code, again.json().get("id")) != (201, made["id"]):
                client.tally.problems.append(f"not repeated: {again.text}")


async def teach_two(client: Client) -> None:
    """At once, or none."""
    subjects = [client.subject(), client.subject()]
    body = {"facts": [{"fact": each.sentence} for each in subjects]}
    answer = await client.ask("POST", "/facts:batch", body)
    if answer.status_code == 201:
        client.tally.wrote("published", 2)
        made = answer.json()
        ids = [each["id"] for each in made["facts"]]
        client.tally.taught += [(s, i, made["weights_version"]) for s, i in zip(subjects, ids, strict=True)]
    elif answer.status_code == 422:
        for each in answer.json()["errors"]:
            client.tally.wrote("unreadable" if each["report"] is None else "not_recalled")


async def retract(client: Client) -> None:
    """One that this client taught."""
    own = [each for each in client.tally.taught if each[0].question and each[1]]
    if not own:
        return
    chosen = client.draw.choice(own)
    client.tally.taught.remove(chosen)
    answer = await client.ask("DELETE", "/facts/{fact_id}", path={"fact_id": chosen[1]})
    if answer.status_code == 200:
        client.tally.wrote("retracted")


async def try_out(client: Client) -> None:
    """A fact that is not kept."""
    answer = await client.ask("POST", "/facts", {"fact": client.subject().sentence, "dry_run": True})
    if answer.status_code != 503:
        client.tally.wrote(_RESULTS.get(answer.json().get("type"), "dry_run"))


async def write(client: Client) -> None:
    """Mostly facts."""
    await client.draw.choices((teach, teach_two, retract, try_out), (70, 10, 15, 5))[0](client)


_RESULTS = {
    "npt:fact-unreadable": "unreadable",
    "npt:fact-not-recalled": "not_recalled",
}


def run(folder: Path, seconds: float, clients: int, writers: int, out: Path | None = None) -> Outcome:
    """So many clients, `writers` of them writing, for `seconds`; samples of memory go to `out`, as CSV."""
    data = folder / "data"
    keys = _keys(data)
    server = ModelServer(data)
    try:
        outcome = asyncio.run(_load(server, keys, seconds, clients, writers, out))
    finally:
        found = server.stop()
    outcome.problems += found
    return outcome


def _keys(data: Path) -> dict[str, str]:
    data.mkdir(parents=True)
    ledger = Ledger(sqlite_url(data / LEDGER_FILE))
    try:
        keys = ApiKeys(ledger)
        reading = [Scope.GENERATE, Scope.FACTS_READ]
        return {
            "all": keys.create("all", [Scope.ADMIN], "cli")[1],
            "reader": keys.create("reader", reading, "cli")[1],
            "limited": keys.create("limited", reading, "cli", rate_per_minute=RATE_A_MINUTE)[1],
            "none": "npt_of_nobody",
        }
    finally:
        ledger.close()


async def _load(
    server: ModelServer,
    keys: Mapping[str, str],
    seconds: float,
    clients: int,
    writers: int,
    out: Path | None,
) -> Outcome:
    async with httpx2.AsyncClient(base_url=server.url) as http:
        tally = Tally((await http.get("/openapi.json")).json()["paths"])
        before = _counters((await http.get("/metrics")).text)
        end = time.monotonic() + seconds
        memory = asyncio.create_task(_memory(server.pid, seconds))
        await asyncio.gather(
            *(
                _client(server.url, keys, tally, i, write if i < writers else read, end)
                for i in range(clients)
            )
        )
        after = _counters((await http.get("/metrics")).text)
    outcome = Outcome(clients)
    samples = await memory
    if out is not None:
        out.write_text("seconds,mib\n" + "".join(f"{at:.1f},{mib:.1f}\n" for at, mib in samples))
    _weigh(outcome, samples)
    _compare(outcome, tally, {name: value - before.get(name, 0) for name, value in after.items()})
    return outcome


async def _client(
    url: str,
    keys: Mapping[str, str],
    tally: Tally,
    number: int,
    work: Callable[[Client], Awaitable[None]],
    end: float,
) -> None:
    name = f"{work.__name__}{number}"
    async with httpx2.AsyncClient(base_url=url, timeout=TIMEOUT_S) as http:
        client = Client(http, tally, keys, name, random.Random(name))
        await client.run(work, lambda: time.monotonic() >= end)


async def _memory(pid: int, seconds: float) -> list[tuple[float, float]]:
    """Seconds and MiB, from time to time."""
    process, begin, samples = psutil.Process(pid), time.monotonic(), []
    while (now := time.monotonic() - begin) < seconds:
        samples.append((now, process.memory_info().rss / 2**20))
        await asyncio.sleep(SAMPLE_S)
    return [*samples, (now, process.memory_info().rss / 2**20)]


def _weigh(outcome: Outcome, samples: list[tuple[float, float]]) -> None:
    end = samples[-1][0]
    warm = [mib for at, mib in samples if at >= WARM_UP * end]
    outcome.warm_mib, outcome.last_mib = round(warm[0], 1), round(warm[-1], 1)
    outcome.peak_mib = round(max(warm), 1)
    slope = 60 * _slope([each for each in samples if each[0] >= end / 2])
    outcome.mib_a_minute = round(slope, 2)
    half, grown = end / 2 / 60, outcome.last_mib - outcome.warm_mib
    if end >= JUDGED_S and grown > GROWN_MIB:
        outcome.problems.append(
            f"memory: {grown:.0f} MiB more than after the warm-up, at most {GROWN_MIB:.0f}"
        )
    if end >= JUDGED_S and slope * half > (most := max(GROWS_MIB, GROWS_MIB_A_MINUTE * half)):
        outcome.problems.append(
            f"memory: {slope:.1f} MiB a minute in the last {half:.1f}, at most {most / half:.1f}"
        )


def _slope(samples: list[tuple[float, float]]) -> float:
    """MiB a second: the median over all pairs of samples (Theil, Sen). What grows once and stays, as a heap
    does for work that is rare, is no slope; `GROWN_MIB` bounds it.
    """
    pairs = combinations(samples, 2)
    slopes = [(later - earlier) / (then - now) for (now, earlier), (then, later) in pairs if then > now]
    return statistics.median(slopes) if slopes else 0.0


def _counters(text: str) -> dict[Metric, float]:
    """Every counter that clients can count, too."""
    found = {}
    for family in text_string_to_metric_families(text):
        for name, labels, value, *_ in family.samples:
            if labels.get("route") in UNCOUNTED:
                continue
            if name == "npt_request_duration_seconds_count":
                found[name, labels["method"], labels["route"], labels["status"]] = value
            elif name == "npt_facts_total":
                found[name, labels["result"]] = value
            elif name in _PLAIN:
                found[name,] = value
    return found


_PLAIN = {
    "npt_prompt_tokens_total",
    "npt_generation_tokens_total",
    "npt_time_to_first_token_seconds_count",
}


def _compare(outcome: Outcome, tally: Tally, told: Mapping[Metric, float]) -> None:
    """Every count of one side is that of the other."""
    names = {name for name, value in told.items() if value} | set(tally.counts)
    for name in sorted(names):
        if tally.counts[name] != told.get(name, 0):
            outcome.problems.append(
                f"counted: {' '.join(name)}: clients {tally.counts[name]}, server {told.get(name, 0):.0f}"
            )
    requests = {name: count for name, count in tally.counts.items() if len(name) == 4}
    outcome.requests, outcome.compared = sum(requests.values()), len(names)
    outcome.routes = len({name[2] for name in requests})
    statuses: Counter[str] = Counter()
    for name, count in requests.items():
        statuses[name[3]] += count
    outcome.statuses = dict(sorted(statuses.items()))
    outcome.prompt_tokens = tally.counts["npt_prompt_tokens_total",]
    outcome.completion_tokens = tally.counts["npt_generation_tokens_total",]
    outcome.facts = {name[1]: n for name, n in sorted(tally.counts.items()) if name[0] == "npt_facts_total"}
    outcome.problems += tally.problems
