import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

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
    queries,
    sqlite_url,
    tables,
)
from tests.service.postgres import PostgresServer

BASE = "b" * 64


def fact(number: int, version: int, text: str = "The sky is blue.") -> Fact:
    return Fact(f"fact_{number}", version, {"fact": text}, {"recall_after": 1.0}, "0" * 64, "2026-01-01")


def birth(number: int, parent: int, **more: Any) -> Change:
    new = fact(number, parent + 1)
    return Change(parent, VersionKind.FACT, births=(new.id,), new_facts=(new,), **more)


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    opened = Ledger(url)
    opened.bind(BASE)
    yield opened
    opened.close()


class LedgerAgainstSets(RuleBasedStateMachine):
    """Any history of births, deaths, rollbacks and restarts, against plain sets."""

    new_url: Callable[[], str]

    def __init__(self) -> None:
        super().__init__()
        self.url = type(self).new_url()
        self.live: list[set[str]] = [set()]

    @initialize()
    def open(self) -> None:
        self.ledger = Ledger(self.url)
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


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_any_history_is_that_of_plain_sets(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    numbers = count()
    machine = LedgerAgainstSets
    if database == "sqlite":
        machine.new_url = lambda: sqlite_url(tmp_path / f"{next(numbers)}.db")
    else:
        machine.new_url = request.getfixturevalue("postgres").new_database
    steps = settings(max_examples=10, stateful_step_count=12, deadline=None)
    run_state_machine_as_test(machine, settings=steps)


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


def test_migrations_make_the_tables_that_the_code_reads(ledger: Ledger) -> None:
    with ledger.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []


def test_audit_tells_who_did_what(ledger: Ledger) -> None:
    ledger.commit(birth(0, 0, actor="key_1"))
    ledger.commit(Change(1, VersionKind.RETRACT, deaths=("fact_0",), actor="key_2"))
    entries = ledger.audit()
    assert [(e.seq, e.actor, e.action, e.target) for e in entries] == [
        (1, "key_1", "fact", "versions/1"),
        (2, "key_2", "retract", "versions/2"),
    ]
    assert entries[1].detail == {"deaths": ["fact_0"]}
    assert ledger.audit(after=1) == entries[1:]


def test_of_two_writers_of_one_version_one_wins(url: str) -> None:
    first, second = Ledger(url), Ledger(url)
    first.bind(BASE)
    second.bind(BASE)
    outcomes: list[object] = []

    def write(ledger: Ledger, number: int) -> None:
        try:
            outcomes.append(ledger.commit(birth(number, 0)).version)
        except StaleParent:
            outcomes.append("stale")

    threads = [threading.Thread(target=write, args=(ledger, i)) for i, ledger in enumerate((first, second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, outcomes)) == ["1", "stale"]
    assert len(first.facts()) == 1
    assert len(first.audit()) == 1
    first.close()
    second.close()


def test_ledger_file_is_the_owners_alone(tmp_path: Path) -> None:
    Ledger(sqlite_url(tmp_path / "ledger.db")).close()
    assert (tmp_path / "ledger.db").stat().st_mode & 0o777 == 0o600


def test_commits_are_as_durable_as_sqlite_makes_them(tmp_path: Path) -> None:
    ledger = Ledger(sqlite_url(tmp_path / "ledger.db"))
    with ledger.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "delete"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 3  # EXTRA


def test_ledger_is_opened_while_another_process_writes(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.new_database()
    writer = Ledger(url)
    writer.bind(BASE)
    read_facts = queries.facts_by_id

    def after_a_commit(connection: Any, ids: Any = None) -> Any:
        monkeypatch.setattr(queries, "facts_by_id", read_facts)
        writer.commit(birth(1, 0))
        return read_facts(connection, ids)

    monkeypatch.setattr(queries, "facts_by_id", after_a_commit)
    opened = Ledger(url)
    assert writer.newest == 1
    assert [version.version for version in opened.versions()] == [0, 1]
    opened.close()
    writer.close()
