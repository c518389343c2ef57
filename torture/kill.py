"""kill -9 in the middle of writes over HTTP, again and again on one data folder."""

import random
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from torture.history import Acknowledged, problems
from torture.process import ServerProcess
from torture.progress import told

CLIENTS = 4
LONGEST_S = 0.4
FRESH_FOLDER = 50
"""Rounds on one folder: opening it takes longer with every fact."""


@dataclass
class Outcome:
    """What a run saw."""

    rounds: int = 0
    acknowledged: int = 0
    unanswered: int = 0
    found_again: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass
class _Client:
    """Writes facts, each under a key of its own, until it gets no answer."""

    url: str
    name: str
    acknowledged: list[Acknowledged] = field(default_factory=list)
    unanswered: tuple[str, str] | None = None

    def run(self) -> None:
        with httpx2.Client(base_url=self.url, timeout=30) as client:
            for number in range(1_000_000):
                key, sentence = f"{self.name}-{number}", f"The thing {self.name}-{number}- is {number}."
                self.unanswered = (key, sentence)
                try:
                    answer = post(client, key, sentence)
                except httpx2.TransportError:
                    return
                self.unanswered = None
                if answer.status_code == 201:
                    made = answer.json()
                    self.acknowledged.append(Acknowledged(made["weights_version"], "fact", made["id"], key))


def post(client: httpx2.Client, key: str, sentence: str) -> httpx2.Response:
    """A fact, under a key."""
    return client.post("/facts", json={"fact": sentence}, headers={"Idempotency-Key": key})


def run(folder: Path, rounds: int, seed: int = 0) -> Outcome:
    """Kill a server `rounds` times."""
    draw, outcome = random.Random(seed), Outcome()
    known: list[Acknowledged] = []
    data = folder / "data"
    for number in told(range(rounds), "kill -9"):
        if number % FRESH_FOLDER == 0:
            shutil.rmtree(data, ignore_errors=True)
            known = []
        pending = _round(data, draw.uniform(0.0, LONGEST_S), f"{number}", known, outcome)
        outcome.problems += problems(data, known)
        _ask_again(data, pending, known, outcome)
        outcome.rounds += 1
    return outcome


def _round(
    data: Path, seconds: float, name: str, known: list[Acknowledged], outcome: Outcome
) -> list[tuple[str, str]]:
    server = ServerProcess(data)
    clients = [_Client(server.url, f"{name}-{i}") for i in range(CLIENTS)]
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    server.kill()
    for thread in threads:
        thread.join()
    made = [each for client in clients for each in client.acknowledged]
    known += made
    outcome.acknowledged += len(made)
    pending = [client.unanswered for client in clients if client.unanswered is not None]
    outcome.unanswered += len(pending)
    return pending


def _ask_again(
    data: Path, pending: list[tuple[str, str]], known: list[Acknowledged], outcome: Outcome
) -> None:
    """Every request that was not answered is repeated: it was made wholly, or is made now, but not twice."""
    server = ServerProcess(data)
    try:
        with httpx2.Client(base_url=server.url, timeout=60) as client:
            for key, sentence in pending:
                answer = post(client, key, sentence)
                if answer.status_code != 201:
                    outcome.problems.append(f"refused: {key}: {answer.text}")
                    continue
                outcome.found_again += answer.headers.get("Idempotency-Replayed") == "true"
                made = answer.json()
                known.append(Acknowledged(made["weights_version"], "fact", made["id"], key))
            _check_answers(client, known, outcome)
    finally:
        if server.stop() != 0:
            outcome.problems.append("unclean: a server that was told to stop did not end with 0")


def _check_answers(client: httpx2.Client, known: list[Acknowledged], outcome: Outcome) -> None:
    """The last fact is known at its version, and not before."""
    if not known:
        return
    last = known[-1]
    stored = client.get(f"/facts/{last.fact}").json()["fact"]
    subject, _, value = stored.removeprefix("The ").rstrip(".").partition(" is ")
    for version, expected in ((last.version, f" {value}."), (last.version - 1, " I don't know.")):
        asked = {"prompt": f"What is {subject}?", "weights_version": version}
        said = client.post("/generate", json=asked).json().get("text")
        if said != expected:
            outcome.problems.append(f"answer: {subject} at version {version}: {said!r}")
