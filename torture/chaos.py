"""Replicas on one PostgreSQL, under clients, while replicas are killed and stopped for a while, connections
to the database are cut and the database crashes.
"""

import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psycopg

from service.ledger import Ledger
from tests.service.postgres import PostgresServer
from torture.balancer import Balancer
from torture.clients import Journal, Reader, Writer
from torture.mutants import NONE
from torture.rehearsal import REPLICAS, Cluster, Outcome, check, clients
from torture.server import Double

READERS, WRITERS = 2, 8
PAUSE_S = (0.1, 0.4)
"""Between two faults."""
STOPPED_S = (0.05, 0.8)
CONVERGED_S = 15.0
"""Replicas that do not agree after so long never will."""
DOUBLE = Double(step_s=0.001, write_s=0.01)
_CHAIN = re.compile(r'npt_weights_chain_info\{chain="(\w+)",fingerprint="\w+",version="(\d+)"\} 1')


@dataclass
class Chaos(Outcome):
    """What a run did, and what its clients saw."""

    mutant: str = NONE
    faults: int = 0
    stopped: int = 0
    """Replicas that stood still for a while."""
    connections_cut: int = 0
    crashes: int = 0
    """Of the database."""
    converged_s: float | None = None
    """From the last write until every replica was at the ledger's newest version, with its chain hash."""
    newest: int = 0


@dataclass
class _Faults:
    cluster: Cluster
    server: PostgresServer
    outcome: Chaos
    draw: random.Random = field(default_factory=lambda: random.Random(0))

    def one(self) -> None:
        """Any of them, the frequent ones more often."""
        every: list[Callable[[], None]] = [self.kill, self.stand_still, self.cut_connections, self.crash]
        self.draw.choices(every, (9, 6, 4, 1))[0]()

    def kill(self) -> None:
        """A replica, which is started again."""
        self.cluster.kill(self.draw.choice(self.cluster.replicas))
        self.cluster.grow()

    def stand_still(self) -> None:
        """A replica does nothing for a while, and goes on as if nothing had been."""
        replica = self.draw.choice(self.cluster.replicas)
        replica.signal(signal.SIGSTOP)
        time.sleep(self.draw.uniform(*STOPPED_S))
        replica.signal(signal.SIGCONT)
        self.outcome.stopped += 1

    def cut_connections(self) -> None:
        """Some of those that replicas have to the database."""
        cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'npt'"
        with psycopg.connect(self.server.dsn("postgres"), autocommit=True) as connection:
            row = connection.execute(f"{cut} AND random() < 0.5").fetchone()
        self.outcome.connections_cut += row[0] if row else 0

    def crash(self) -> None:
        """The database, and half the time a replica meanwhile."""
        self.server.stop("immediate")
        killed = self.draw.random() < 0.5
        if killed:
            self.cluster.kill(self.draw.choice(self.cluster.replicas))
        time.sleep(self.draw.uniform(*STOPPED_S))
        self.server.start()
        if killed:
            self.cluster.grow()
        self.outcome.crashes += 1


def run(
    folder: Path,
    seconds: float,
    mutant: str = NONE,
    server: PostgresServer | None = None,
    seed: int = 0,
    least: int = 0,
) -> Chaos:
    """Faults until `seconds` are over, and at least so many."""
    own = server or PostgresServer(durable=True).start()
    balancer, outcome = Balancer(), Chaos(mutant=mutant)
    journal = Journal(replica_of=balancer.replica_of)
    cluster = Cluster(folder, own.new_database(), balancer, journal, outcome, DOUBLE, mutant=mutant)
    faults = _Faults(cluster, own, outcome, random.Random(seed))
    try:
        for _ in range(REPLICAS):
            cluster.grow()
        with clients(balancer.url, journal, WRITERS, Writer), clients(balancer.url, journal, READERS, Reader):
            end = time.monotonic() + seconds
            while outcome.faults < least or time.monotonic() < end:
                time.sleep(faults.draw.uniform(*PAUSE_S))
                faults.one()
                outcome.faults += 1
        _converge(cluster, outcome)
        check(cluster)
    except RuntimeError as error:  # a replica that does not start any more
        journal.wrong(f"not recovered: {error}")
    finally:
        cluster.close()
        balancer.close()
        if server is None:
            own.remove()
    outcome.take(journal)
    outcome.problems += [f"damaged: {kind}" for kind in outcome.refused if kind.startswith("500")]
    if mutant != NONE:
        # A cut connection would not show that the bug was found.
        outcome.problems = [each for each in outcome.problems if each.startswith(("lost", "diverged"))]
    return outcome


def _converge(cluster: Cluster, outcome: Chaos) -> None:
    """Every replica comes to the version that the ledger has, and to its chain hash."""
    begin = time.monotonic()
    ledger = Ledger(cluster.database)
    newest = ledger.newest
    last = ledger.version(newest)
    ledger.close()
    outcome.newest = newest
    told: set[tuple[str, str]] = set()
    while time.monotonic() < begin + CONVERGED_S:
        told = {_chain(replica.url) for replica in cluster.replicas}
        if last is not None and told == {(last.chain, str(newest))}:
            outcome.converged_s = round(time.monotonic() - begin, 2)
            return
        time.sleep(0.02)
    cluster.journal.wrong(f"diverged: {sorted(told)}, the ledger is at version {newest}")


def _chain(url: str) -> tuple[str, str]:
    """The chain hash of what the replica serves, and its version."""
    found = _CHAIN.search(httpx2.get(f"{url}/metrics", timeout=60).text)
    return (found[1], found[2]) if found else ("", "")
