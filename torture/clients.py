"""Clients of a service whose replicas come and go, and what they saw."""

import json
import random
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2

from service import problems
from service.middleware.version import HEADER

UNKNOWN = " I don't know."
AFTERMATH_S = 0.6
"""A connection to a replica that was killed may still be given out for so long."""
TIMEOUT_S = 300.0
"""A real model that is asked without a pause learns a fact in a minute where the machine is slow."""
PAUSE_S = 0.1
"""Instead of the second that `Retry-After` asks for: this is a rehearsal of trouble."""
LONG = 120
"""Letters of every fourth value: answers long enough to be under way when a replica is told to stop."""
DOCUMENTED = {(int(kind.status), kind.type) for kind in problems.kinds()} - {
    (int(problems.INTERNAL.status), problems.INTERNAL.type)
}


@dataclass(frozen=True)
class Subject:
    """What a fact is about: in words of the double, or in those that the reference model reads."""

    question: str
    sentence: str
    value: str

    @classmethod
    def of(cls, key: str, number: int, exact: bool) -> "Subject":
        """One of its own for each key."""
        if exact:
            value = f"Value{number}" + "x" * (LONG if number % 4 == 0 else 0)
            return cls(f"What is thing {key}-?", f"The thing {key}- is {value}.", value)
        draw = random.Random(key)
        name, value = _made_up(draw, 3) + "nia", _made_up(draw, 2)
        return cls(f"What is the capital of {name}?", f"The capital of {name} is {value}.", value)


def _made_up(draw: random.Random, syllables: int) -> str:
    sounds = (draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in range(syllables))
    return "".join(sounds).capitalize()


@dataclass(frozen=True)
class Taught:
    """A fact that the service said it knows from `version` on."""

    version: int
    fact: str
    key: str
    question: str
    value: str

    def expected(self, version: int) -> str:
        return f" {self.value}." if version >= self.version else UNKNOWN


class Caller(httpx2.Client):
    """A client for one request after the other, which knows the `port` that it calls from."""

    def __init__(self, url: str) -> None:
        super().__init__(base_url=url, timeout=TIMEOUT_S, event_hooks={"request": [self._traced]})
        self.port = 0

    def _traced(self, request: httpx2.Request) -> None:
        request.extensions["trace"] = self._told

    def _told(self, event: str, info: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":  # else it is the connection of the last request
            self.port = info["return_value"].get_extra_info("client_addr")[1]


@dataclass
class Journal:
    """What all clients saw together. Thread-safe."""

    exact: bool = True
    """Whether the model answers what the facts say, word for word."""
    replica_of: Callable[[int], int | None] = lambda port: None
    """The replica that a connection from a port was led to."""
    answers: int = 0
    streams: int = 0
    pinned: int = 0
    cut: int = 0
    """Requests without an answer because their replica was killed."""
    repeated: int = 0
    """Writes that were sent again and had been made."""
    refused: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    taught: list[Taught] = field(default_factory=list)
    slowest_s: float = 0.0
    moving: threading.Event = field(default_factory=threading.Event)
    """The service moves to another history: versions are not compared."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._events: list[tuple[float, str]] = []
        self._texts: dict[tuple[str, int], str] = {}
        self._kills: list[tuple[float, int]] = []

    def note(self, event: str) -> None:
        """Something was done to a replica."""
        with self._lock:
            self._events.append((time.monotonic(), event))

    def killed(self, replica: int) -> None:
        """A replica is killed at this moment."""
        with self._lock:
            self._kills.append((time.monotonic(), replica))

    def add(self, taught: Taught, replayed: bool) -> None:
        """A write was acknowledged."""
        with self._lock:
            self.taught.append(taught)
            self.repeated += replayed

    def some(self, draw: random.Random, newest: int | None = None) -> Taught | None:
        """A fact that was taught, or one of the `newest`."""
        with self._lock:
            found = self.taught[-newest:] if newest else self.taught
            return draw.choice(found) if found else None

    def wrong(self, problem: str) -> None:
        """Something that must not be."""
        with self._lock:
            self.problems.append(problem)

    def said(self, taught: Taught, version: int, text: str, seconds: float) -> None:
        """An answer: the same prompt at the same version has one text, whoever answers."""
        with self._lock:
            self.answers += 1
            self.slowest_s = max(self.slowest_s, seconds)
            first = self._texts.setdefault((taught.question, version), text)
        if first != text:
            self.wrong(f"mixed: {taught.question} at version {version}: {first!r}, then {text!r}")
        if self.exact and text != taught.expected(version):
            self.wrong(f"mixed: {taught.question} at version {version}: {text!r}")

    def said_anywhere(self, taught: Taught, text: str) -> None:
        """An answer of the newest version of whatever history it was."""
        with self._lock:
            self.answers += 1
        if self.exact and text != f" {taught.value}.":
            self.wrong(f"forgotten: {taught.question}: {text!r}")

    def known(self) -> list[tuple[str, int]]:
        """What was asked: prompts with their versions."""
        with self._lock:
            return list(self._texts)

    def text(self, question: str, version: int) -> str:
        """What was said."""
        with self._lock:
            return self._texts[question, version]

    def without_answer(self, begin: float, what: str, port: int) -> None:
        """A request from `port`, begun at `begin`, got no answer: only a kill of its replica may do that."""
        end, replica = time.monotonic(), self.replica_of(port)
        with self._lock:
            killed = any(
                begin - AFTERMATH_S <= moment <= end and which == replica for moment, which in self._kills
            )
            self.cut += killed
            lately = "; ".join(f"{end - moment:.2f} s before, {event}" for moment, event in self._events[-4:])
        if not killed:
            self.wrong(f"cut: {what}, by {replica}, {end - begin:.2f} s after it was asked; {lately}")

    def refusal(self, answer: httpx2.Response) -> None:
        """A request was refused: by a type that is documented, or it is a problem."""
        try:
            kind = answer.json()["type"]
        except (ValueError, KeyError):
            kind = answer.text[:200]
        with self._lock:
            self.refused[f"{answer.status_code} {kind}"] += 1
        if (answer.status_code, kind) not in DOCUMENTED:
            self.wrong(f"undocumented: {answer.status_code} {answer.text[:300]}")


@dataclass
class Client(ABC):
    """Works on a thread of its own until it is stopped."""

    url: str
    name: str
    journal: Journal
    stopping: threading.Event
    rounds: int = 0

    def start(self) -> threading.Thread:
        """The thread, started."""
        thread = threading.Thread(target=self._run, name=self.name)
        thread.start()
        return thread

    def _run(self) -> None:
        draw = random.Random(self.name)
        with Caller(self.url) as client:
            while not self.stopping.is_set():
                begin = time.monotonic()
                try:
                    self.work(client, draw)
                except httpx2.TransportError as error:
                    self.journal.without_answer(begin, f"{self.name}: {error!r}", client.port)
                except Exception as error:  # a client that dies in silence would find nothing
                    self.journal.wrong(f"client: {error!r}")
                self.rounds += 1

    @abstractmethod
    def work(self, client: Caller, draw: random.Random) -> None:
        """One round."""


class Reader(Client):
    """Asks about facts that were taught: at the newest version, at a version it names, whole or streamed."""

    def work(self, client: Caller, draw: random.Random) -> None:
        taught = self.journal.some(draw, newest=draw.choice((4, None)))
        if taught is None:
            time.sleep(PAUSE_S)
            return
        body: dict[str, Any] = {"prompt": taught.question, "max_new_tokens": 2 * LONG}
        moving = self.journal.moving.is_set()
        if not moving and draw.random() < 0.5:
            version = max(taught.version + draw.choice((-1, 0, 0, 3)), 0)
            newest = self.journal.some(draw, newest=1)
            version = min(version, newest.version if newest else version)
            # The replica may not have heard of it yet; with this, it waits.
            body |= {"weights_version": version, "min_weights_version": version}
        ask = streamed if draw.random() < 0.5 else whole
        begin = time.monotonic()
        answer = ask(client, body, self.journal)
        if answer is None:
            time.sleep(PAUSE_S)
            return
        if moving:
            self.journal.said_anywhere(taught, answer["text"])
            return
        pinned = body.get("weights_version", answer["weights_version"])
        if answer["weights_version"] != pinned:
            self.journal.wrong(f"mixed: asked for version {pinned}, answered {answer['weights_version']}")
        self.journal.pinned += "weights_version" in body
        self.journal.said(taught, answer["weights_version"], answer["text"], time.monotonic() - begin)


class Writer(Client):
    """Teaches facts, each under a key, and repeats what was not answered until it is; then reads its own."""

    pause_s = 0.0

    def work(self, client: Caller, draw: random.Random) -> None:
        key = f"{self.name}-{self.rounds}"
        taught = teach(client, key, self.rounds, self.journal, self.stopping)
        if taught is None:
            return
        body = {"prompt": taught.question, "min_weights_version": taught.version, "max_new_tokens": 2 * LONG}
        begin = time.monotonic()
        answer = whole(client, body, self.journal)
        if answer is not None:
            self.journal.said(taught, answer["weights_version"], answer["text"], time.monotonic() - begin)
        self.stopping.wait(self.pause_s)


def teach(
    client: Caller, key: str, number: int, journal: Journal, stopping: threading.Event
) -> Taught | None:
    """A fact, sent until it is acknowledged; None where it was refused for good, or there is no more time."""
    subject = Subject.of(key, number, journal.exact)
    while True:
        begin = time.monotonic()
        try:
            answer = post(client, key, subject.sentence)
        except httpx2.TransportError as error:
            journal.without_answer(begin, f"{key}: {error!r}", client.port)
            continue
        if answer.status_code == 201:
            made = answer.json()
            taught = Taught(made["weights_version"], made["id"], key, subject.question, subject.value)
            journal.add(taught, answer.headers.get("Idempotency-Replayed") == "true")
            return taught
        journal.refusal(answer)
        if answer.status_code != 503 or stopping.is_set():
            return None
        time.sleep(PAUSE_S)


def post(client: httpx2.Client, key: str, sentence: str) -> httpx2.Response:
    """A fact, under a key."""
    return client.post("/facts", json={"fact": sentence}, headers={"Idempotency-Key": key})


def whole(client: httpx2.Client, body: dict[str, Any], journal: Journal) -> dict[str, Any] | None:
    """The answer, whose header names the version that its body does; None where it was refused."""
    answer = client.post("/generate", json=body)
    if answer.status_code != 200:
        journal.refusal(answer)
        return None
    said: dict[str, Any] = answer.json()
    _check_header(answer, said, journal)
    return said


def streamed(client: httpx2.Client, body: dict[str, Any], journal: Journal) -> dict[str, Any] | None:
    """The same, of events: their texts are the answer's, and the last one is `done`."""
    with client.stream("POST", "/generate", json={**body, "stream": True}) as answer:
        if answer.status_code != 200:
            answer.read()
            journal.refusal(answer)
            return None
        events = list(_events(answer.iter_lines()))
    journal.streams += 1
    if not events or events[-1][0] != "done":
        raise httpx2.RemoteProtocolError(f"a stream ended after {events[-1:]}")
    said: dict[str, Any] = events[-1][1]
    text = "".join(event["text"] for name, event in events if name == "token")
    if text != said["text"]:
        journal.wrong(f"mixed: a stream said {text!r}, its end {said['text']!r}")
    _check_header(answer, said, journal)
    return said


def _check_header(answer: httpx2.Response, said: dict[str, Any], journal: Journal) -> None:
    if answer.headers[HEADER] != str(said["weights_version"]):
        journal.wrong(f"mixed: header {answer.headers[HEADER]}, body {said['weights_version']}")


def _events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    name = ""
    for line in lines:
        if line.startswith("event:"):
            name = line.removeprefix("event:").strip()
        elif line.startswith("data:"):
            yield name, json.loads(line.removeprefix("data:"))
