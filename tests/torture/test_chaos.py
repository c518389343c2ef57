"""The short form of `python -m torture chaos`; and that it finds what it is there to find."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.postgres import PostgresServer, postgres_or_skip
from torture import chaos
from torture.mutants import LOST_UPDATE

FAULTS = 8
"""The first ones of this seed are of every kind."""
SEED = 3


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    own = postgres_or_skip(durable=True)  # it will crash
    yield own
    own.remove()


@pytest.mark.timeout(600)  # a quarter of a minute alone, minutes beside other work
def test_replicas_in_chaos_lose_nothing_and_come_to_agree(tmp_path: Path, server: PostgresServer) -> None:
    outcome = chaos.run(tmp_path, 0.0, server=server, seed=SEED, least=FAULTS)
    assert outcome.problems == []
    assert outcome.converged_s is not None
    assert 0 < outcome.acknowledged <= outcome.newest
    assert min(outcome.killed, outcome.stopped, outcome.connections_cut, outcome.crashes) > 0


@pytest.mark.timeout(600)
def test_fence_that_does_not_hold_is_found(tmp_path: Path, server: PostgresServer) -> None:
    outcome = chaos.run(tmp_path, 5.0, LOST_UPDATE, server)
    assert outcome.problems
