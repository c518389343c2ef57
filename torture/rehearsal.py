"""What a cluster does to its replicas, played with processes and a PostgreSQL behind a balancer, while
clients ask and teach: scale up, rolling restart, a replica killed, a writer killed in the middle of its
writes, a replica of another checkpoint, scale down; at last the move to another checkpoint.
"""

import asyncio
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from service.blobs import FolderBlobs
from service.cli.copying import copy
from service.ledger import Ledger
from service.ledger.verify import history_problem
from service.stores import BLOB_FOLDER
from tests.service.postgres import PostgresServer
from torture.balancer import Balancer
from torture.checkpoint import retrained
from torture.clients import LONG, TIMEOUT_S, Caller, Journal, Reader, Subject, Taught, Writer, post, teach
from torture.history import Acknowledged, problems_of
from torture.mutants import NONE
from torture.process import ServerProcess
from torture.server import Double

REPLICAS = 3
READERS, WRITERS = 6, 2
WRITER_PAUSE_S = 0.3
COMPARED = 15
"""Answers that every replica gives again after each change of the replicas."""
AT_ONCE = 16
"""Requests that compare."""
TOGETHER = 4
"""Writes under way where a writer is killed."""
DOUBLE = Double(step_s=0.002, write_s=0.02)
ELSEWHERE = Double("e" * 64, step_s=0.002)
"""Of another checkpoint."""
SETTINGS = {"NPT_DRAIN_DELAY_S": "1.5", "NPT_KEEP_VERSIONS": "1000000"}


@dataclass
class Outcome:
    """What a run did, and what its clients saw."""

    rounds: int = 0
    starts: int = 0
    drained: int = 0
    killed: int = 0
    killed_writes: int = 0
    """Under way on a replica that was killed."""
    refused_to_start: int = 0
    compared: int = 0
    moved: int = 0
    """Facts that were taught to the other checkpoint."""
    not_moved: int = 0
    """Facts that it refused."""
    recalled: tuple[int, int] = (0, 0)
    """Facts that were answered before the move, and after it."""
    acknowledged: int = 0
    answers: int = 0
    streams: int = 0
    pinned: int = 0
    cut_by_kills: int = 0
    repeated_and_found: int = 0
    slowest_answer_s: float = 0.0
    refused: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def take(self, journal: Journal) -> "Outcome":
        """What the clients saw, too."""
        self.acknowledged, self.answers = len(journal.taught), journal.answers
        self.streams, self.pinned = journal.streams, journal.pinned
        self.cut_by_kills, self.repeated_and_found = journal.cut, journal.repeated
        self.slowest_answer_s, self.refused = round(journal.slowest_s, 2), dict(journal.refused)
        self.problems += journal.problems
        return self


@dataclass
class Cluster:
    """Replicas of one history behind a balancer."""

    folder: Path
    database: str
    balancer: Balancer
    journal: Journal
    outcome: Outcome
    model: Double | Path
    mutant: str = NONE
    replicas: list[ServerProcess] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(1_000_000)))

    @property
    def blobs(self) -> Path:
        """What a shared store is in production."""
        return self.folder / "blobs"

    def started(self, model: Double | Path | None = None, wait: bool = True) -> ServerProcess:
        """A process with a data folder of its own."""
        loaded = model or self.model
        number = next(self.numbers)
        data = self.folder / f"replica-{number}"
        data.mkdir(parents=True)
        self.blobs.mkdir(exist_ok=True)
        (data / BLOB_FOLDER).symlink_to(self.blobs, target_is_directory=True)
        environment = {**SETTINGS, "NPT_DATABASE_URL": self.database}
        double = loaded if isinstance(loaded, Double) else None
        if double is None:
            environment["NPT_MODEL"] = str(loaded)
        log = self.folder / f"{number}.log"
        return ServerProcess(data, environment, double, log, wait, self.mutant)

    def grow(self) -> ServerProcess:
        """One replica more, which gets connections."""
        replica = self.started(wait=False)
        self.replicas.append(replica)
        self.balancer.add(replica.port)
        try:
            self.balancer.wait(replica.port, gone=lambda: not replica.alive)
        except RuntimeError as error:
            raise RuntimeError(f"{error}; its log: {self.last_log()}") from error
        self.outcome.starts += 1
        self.journal.note(f"{replica.port} is ready")
        return replica

    def last_log(self) -> str:
        """What the process that was started last has logged."""
        logs = sorted(self.folder.glob("*.log"), key=lambda path: int(path.stem))
        return logs[-1].read_text() if logs else ""

    def drain(self, replica: ServerProcess) -> None:
        """As an orchestrator ends one: it says that it is not ready, ends what runs, and exits with 0."""
        self.replicas.remove(replica)
        self.journal.note(f"told {replica.port} to end")
        replica.signal(15)
        self.balancer.wait(replica.port, ready=False)
        self.journal.note(f"no more connections to {replica.port}")
        self.balancer.remove(replica.port)
        code = replica.join()
        self.journal.note(f"{replica.port} has ended")
        if code != 0:
            self.journal.wrong(f"unclean: a replica that was told to stop ended with {code}")
        self.outcome.drained += 1

    def kill(self, replica: ServerProcess) -> None:
        """At once."""
        self.replicas.remove(replica)
        self.journal.killed(replica.port)
        replica.kill()
        self.journal.killed(replica.port)
        self.balancer.remove(replica.port)
        self.outcome.killed += 1

    def close(self) -> None:
        """End every process."""
        for replica in self.replicas:
            replica.kill()
        self.replicas.clear()


def run(
    folder: Path,
    seconds: float = 0.0,
    model: Path | None = None,
    server: PostgresServer | None = None,
    readers: int = READERS,
) -> Outcome:
    """Rounds of everything until `seconds` are over, at least one; of the checkpoint `model`, or a double."""
    own = server or PostgresServer(durable=True).start()
    try:
        return _run(folder, seconds, model, own, readers)
    finally:
        if server is None:
            own.remove()


def _run(folder: Path, seconds: float, model: Path | None, server: PostgresServer, readers: int) -> Outcome:
    balancer, outcome = Balancer(), Outcome()
    journal = Journal(exact=model is None, replica_of=balancer.replica_of)
    other = ELSEWHERE if model is None else retrained(model, folder / "retrained")
    cluster = Cluster(folder / "blue", server.new_database(), balancer, journal, outcome, model or DOUBLE)
    draw, end = random.Random(0), time.monotonic() + seconds
    try:
        cluster.grow()
        with clients(balancer.url, journal, WRITERS, Writer), clients(balancer.url, journal, readers, Reader):
            while outcome.rounds == 0 or time.monotonic() < end:
                _round(cluster, other, draw)
                outcome.rounds += 1
        check(cluster)
        green = Cluster(folder / "green", server.new_database(), balancer, journal, outcome, other)
        move(cluster, green)
    finally:
        cluster.close()
        balancer.close()
    return outcome.take(journal)


def _round(cluster: Cluster, other: Double | Path, draw: random.Random) -> None:
    while len(cluster.replicas) < REPLICAS:
        cluster.grow()
    compare(cluster, draw)
    for replica in list(cluster.replicas):
        cluster.grow()
        cluster.drain(replica)
    compare(cluster, draw)
    cluster.kill(draw.choice(cluster.replicas))
    cluster.grow()
    kill_a_writer(cluster, draw)
    cluster.grow()
    refuse_another_checkpoint(cluster, other)
    compare(cluster, draw)
    while len(cluster.replicas) > 1:
        cluster.drain(cluster.replicas[0])


def compare(cluster: Cluster, draw: random.Random) -> None:
    """Every replica says again what was said before, at the version it was said."""
    known = cluster.journal.known()
    asked = draw.sample(known, min(COMPARED, len(known)))
    pairs = [(replica.url, question, version) for replica in cluster.replicas for question, version in asked]

    def differs(pair: tuple[str, str, int]) -> None:
        url, question, version = pair
        pinned = {"weights_version": version, "min_weights_version": version}
        body = {"prompt": question, "max_new_tokens": 2 * LONG, **pinned}
        said = httpx2.post(f"{url}/generate", json=body, timeout=TIMEOUT_S).json().get("text")
        if said != cluster.journal.text(question, version):
            cluster.journal.wrong(f"mixed: {question} at version {version}, compared: {said!r}")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(differs, pairs))
    cluster.outcome.compared += len(pairs)


def kill_a_writer(cluster: Cluster, draw: random.Random) -> None:
    """Killed while it writes; each of its writes is repeated, and made exactly once."""
    victim = draw.choice(cluster.replicas)
    keys = [f"mid-{cluster.outcome.rounds}-{i}" for i in range(TOGETHER)]
    begun = threading.Barrier(TOGETHER + 1)
    acknowledged: list[bool] = []

    def write(number: int) -> None:
        with httpx2.Client(base_url=victim.url, timeout=TIMEOUT_S) as client:
            client.get("/livez")
            begun.wait()
            try:
                sentence = Subject.of(keys[number], number, cluster.journal.exact).sentence
                acknowledged.append(post(client, keys[number], sentence).status_code == 201)
            except httpx2.TransportError:
                pass

    threads = [threading.Thread(target=write, args=(i,)) for i in range(TOGETHER)]
    for thread in threads:
        thread.start()
    begun.wait()
    time.sleep(draw.uniform(0.0, TOGETHER * (DOUBLE.write_s if cluster.model is DOUBLE else 0.5)))
    cluster.kill(victim)
    for thread in threads:
        thread.join()
    cluster.outcome.killed_writes += TOGETHER - sum(acknowledged)
    never = threading.Event()
    with Caller(cluster.balancer.url) as client:
        for number, key in enumerate(keys):
            teach(client, key, number, cluster.journal, never)


def refuse_another_checkpoint(cluster: Cluster, other: Double | Path) -> None:
    """A replica of another checkpoint does not start on this history, and says why in one line."""
    stranger = cluster.started(other, wait=False)
    code = stranger.join()
    lines = cluster.last_log().strip().splitlines()
    if code != 1 or len(lines) != 1 or "another checkpoint" not in lines[0]:
        cluster.journal.wrong(f"another checkpoint: exit code {code}, log {lines}")
    cluster.outcome.refused_to_start += 1


def move(blue: Cluster, green: Cluster) -> None:
    """To another checkpoint, while clients read: a history of its own, every fact taught again, and then the
    connections; see docs/operations.md.
    """
    try:
        first = green.started()
        with clients(blue.balancer.url, blue.journal, READERS, Reader) as readers:
            blue.journal.moving.set()
            _one_round_each(readers)
            before = _recalled(blue.replicas[0].url, blue.journal)
            green.outcome.moved, green.outcome.not_moved = asyncio.run(copy(blue.replicas[0].url, first.url))
            green.replicas.append(first)
            green.balancer.add(first.port)
            green.balancer.wait(first.port)
            for replica in list(blue.replicas):
                blue.drain(replica)
            _one_round_each(readers)
        green.outcome.recalled = before, _recalled(first.url, green.journal)
        known = {taught.fact for taught in green.journal.taught}
        if green.outcome.moved + green.outcome.not_moved != len(known):
            green.journal.wrong(f"lost: {green.outcome.moved} facts moved, {len(known)} were taught")
        if green.journal.exact and green.outcome.not_moved:
            green.journal.wrong(f"refused: {green.outcome.not_moved} facts by the other checkpoint")
    finally:
        green.close()


def _recalled(url: str, journal: Journal) -> int:
    """How many of the facts that were taught the server at `url` answers with."""

    def asked(taught: Taught) -> bool:
        body = {"prompt": taught.question, "max_new_tokens": 2 * LONG}
        text = httpx2.post(f"{url}/generate", json=body, timeout=TIMEOUT_S).json()["text"]
        journal.said_anywhere(taught, text)
        return taught.value in text

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return sum(pool.map(asked, journal.taught))


def _one_round_each(readers: Sequence[Reader]) -> None:
    before = [reader.rounds for reader in readers]
    while any(reader.rounds < rounds + 2 for reader, rounds in zip(readers, before, strict=True)):
        time.sleep(0.01)


@contextmanager
def clients(url: str, journal: Journal, count: int, kind: type[Any]) -> Iterator[list[Any]]:
    """So many of a kind, at work within the block."""
    stopping = threading.Event()
    made = [kind(url, f"{kind.__name__.lower()}{i}", journal, stopping) for i in range(count)]
    for each in made:
        if isinstance(each, Writer):
            each.pause_s = WRITER_PAUSE_S
    threads = [each.start() for each in made]
    try:
        yield made
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def check(cluster: Cluster) -> None:
    """Nothing that was acknowledged is lost, nothing was made twice, and the history is whole."""
    ledger = Ledger(cluster.database)
    taught = cluster.journal.taught
    acknowledged = [Acknowledged(each.version, "fact", each.fact, each.key) for each in taught]
    try:
        facts = {stored.fact.id: stored.fact for stored in ledger.facts()}
        cluster.journal.problems += problems_of(ledger, FolderBlobs(cluster.blobs), acknowledged)
        problem = history_problem(ledger.versions(), facts)
    finally:
        ledger.close()
    if problem is not None:
        cluster.journal.wrong(f"damaged: {problem}")
    sentences = [fact.request["fact"] for fact in facts.values()]
    if len(set(sentences)) != len(sentences):
        cluster.journal.wrong("twice: a fact was made twice")
