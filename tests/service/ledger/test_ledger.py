from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.ledger import (
    ANONYMOUS,
    Change,
    Fact,
    FactState,
    IdempotencyKey,
    Ledger,
    Position,
    StaleParent,
    VersionKind,
    WrongCheckpoint,
    sqlite_url,
)

BASE = "b" * 64


def fact(number: int, version: int, text: str = "The sky is blue.") -> Fact:
    return Fact(f"fact_{number}", version, {"fact": text}, {"recall_after": 1.0}, "0" * 64, "2026-01-01")


def birth(number: int, parent: int, **more: Any) -> Change:
    new = fact(number, parent + 1)
    return Change(parent, VersionKind.FACT, births=(new.id,), new_facts=(new,), **more)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    opened = Ledger(sqlite_url(tmp_path / "ledger.db"))
    opened.bind(BASE)
    return opened


class LedgerAgainstSets(RuleBasedStateMachine):
    """Any history of births, deaths, rollbacks and restarts, against plain sets."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger.db"
        self.live: list[set[str]] = [set()]

    @initialize()
    def open(self) -> None:
        self.ledger = Ledger(sqlite_url(self.path))
        self.ledger.bind(BASE)

    @property
    def newest(self) -> int:
        return len(self.live) - 1

    @rule()
    def teach(self) -> None:
        change = birth(len(self.live), self.newest)
        self.ledger.commit(change)
        self.live.append(self.live[-1] | set(change.births))

    @precondition(lambda self: self.live[-1])
    @rule(data=st.data())
    def retract(self, data: st.DataObject) -> None:
        victim = data.draw(st.sampled_from(sorted(self.live[-1])))
        self.ledger.commit(Change(self.newest, VersionKind.RETRACT, deaths=(victim,)))
        self.live.append(self.live[-1] - {victim})

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        target = data.draw(st.integers(0, self.newest))
        then, today = self.live[target], self.live[-1]
        births, deaths = tuple(then - today), tuple(today - then)
        self.ledger.commit(Change(self.newest, VersionKind.ROLLBACK, births, deaths, target=target))
        self.live.append(set(then))

    @rule()
    def restart(self) -> None:
        self.ledger.close()
        self.open()

    @invariant()
    def every_version_knows_what_it_knew(self) -> None:
        assert self.ledger.newest == self.newest
        for version, expected in enumerate(self.live):
            assert self.ledger.live(version) == expected

    @invariant()
    def facts_are_in_the_right_state(self) -> None:
        published = {s.fact.id for s in self.ledger.facts(state=FactState.PUBLISHED)}
        retracted = {s.fact.id for s in self.ledger.facts(state=FactState.RETRACTED)}
        assert published == self.live[-1]
        assert published | retracted == set().union(*self.live)

    def teardown(self) -> None:
        self.ledger.close()
        self.folder.cleanup()


TestLedgerAgainstSets = LedgerAgainstSets.TestCase
TestLedgerAgainstSets.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)


def test_facts_come_in_pages(ledger: Ledger) -> None:
    for number in range(5):
        ledger.commit(birth(number, number))
    first = ledger.facts(limit=2)
    last = first[-1].fact
    rest = ledger.facts(Position(last.version, last.id), limit=10)
    assert [s.fact.id for s in first + rest] == [f"fact_{i}" for i in range(5)]


def test_retracted_fact_names_the_version_it_died_in(ledger: Ledger) -> None:
    ledger.commit(birth(0, 0))
    ledger.commit(Change(1, VersionKind.RETRACT, deaths=("fact_0",)))
    found = ledger.fact("fact_0")
    assert found is not None
    assert (found.state, found.died) == (FactState.RETRACTED, 2)
    assert ledger.fact("fact_1") is None


def test_write_on_an_old_version_is_refused(ledger: Ledger) -> None:
    ledger.commit(birth(0, 0))
    with pytest.raises(StaleParent, match="cannot build on version 0, the newest is 1"):
        ledger.commit(birth(1, 0))
    assert ledger.newest == 1
    assert ledger.fact("fact_1") is None


def test_idempotency_key_finds_its_fact(ledger: Ledger) -> None:
    key = IdempotencyKey("k", "d")
    ledger.commit(birth(0, 0, key=key))
    assert ledger.find_key(ANONYMOUS, "k") == (key, 1)
    assert ledger.find_key(ANONYMOUS, "other") is None
    assert ledger.find_key("somebody", "k") is None


def test_ledger_of_another_checkpoint_is_refused(ledger: Ledger) -> None:
    ledger.bind(BASE)
    with pytest.raises(WrongCheckpoint, match="another checkpoint"):
        ledger.bind("c" * 64)


def test_ledger_file_is_the_owners_alone(ledger: Ledger, tmp_path: Path) -> None:
    assert (tmp_path / "ledger.db").stat().st_mode & 0o777 == 0o600


def test_commits_are_as_durable_as_sqlite_makes_them(ledger: Ledger) -> None:
    with ledger.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "delete"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 3  # EXTRA
