"""Nothing half-written: each step of a write fails in turn, and the service goes on as before."""

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from npt_core.bank import BankError
from service.commands import Cancelled, KeyInFlight, ReadOnly, StaleVersion, TooManyWrites
from service.fact_requests import add_command
from service.host import Host
from service.ledger import ANONYMOUS
from service.schemas.facts import FactIn
from service.storage import DiskFull, StorageFailed
from tests.service.conftest import OpenHost, fake

FACT = "The CEO of TechCorp is Dr. Sarah Chen."


def teaching(text: str = FACT, key: str | None = None, if_match: int | None = None) -> Any:
    return add_command([FactIn(fact=text)], 2, ANONYMOUS, key, if_match)


def unchanged(host: Host) -> bool:
    bank = fake(host).bank
    return (host.version, host.ledger.newest, host.ledger.facts(), bank.lives) == (0, 0, [], [])


def failing(code: int) -> Callable[..., None]:
    def fail(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_full_disk_refuses_the_write_and_spares_the_next(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(errno.ENOSPC))
        with pytest.raises(DiskFull):
            host.writer.add(teaching())
    assert unchanged(host)
    assert host.writer.add(teaching()).version.version == 1


def test_failed_fsync_makes_the_service_read_only(host_of: OpenHost, monkeypatch: pytest.MonkeyPatch) -> None:
    host = host_of()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(errno.EIO))
        with pytest.raises(StorageFailed):
            host.writer.add(teaching())
    assert unchanged(host)
    with pytest.raises(ReadOnly, match="no writes until restart"):
        host.writer.add(teaching())
    assert host_of().writer.add(teaching()).version.version == 1


def test_fact_that_could_not_be_published_is_there_after_a_restart(
    host_of: OpenHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = host_of()

    def broken(*_: Any) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(fake(host).bank, "publish", broken)
        with pytest.raises(RuntimeError):
            host.writer.add(teaching(key="k"))
    with pytest.raises(ReadOnly):
        host.writer.retract("fact_1")
    again = host_of()
    assert again.version == 1
    replayed = again.writer.add(teaching(key="k"))
    assert replayed.replayed
    assert replayed.version.version == 1


def test_weights_that_the_bank_refuses_are_not_in_the_ledger(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*_: Any) -> None:
        raise BankError("does not fit")

    with monkeypatch.context() as patch:
        patch.setattr(fake(host).bank, "check", refusing)
        with pytest.raises(BankError):
            host.writer.add(teaching())
    assert unchanged(host)
    assert host.writer.add(teaching()).version.version == 1


def test_full_ledger_disk_writes_nothing(host: Host, data: Path) -> None:
    with host.ledger.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    def teach_until_it_is_full() -> None:
        for number in range(100):
            host.writer.add(teaching(f"The number {number} is {'9' * 900}."))

    with pytest.raises(DiskFull):
        teach_until_it_is_full()
    newest = host.ledger.newest
    assert host.version == newest == len(host.ledger.facts())


def test_concurrent_writes_take_turns(host: Host) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(host.writer.add, [teaching(f"The X{i} is Y.") for i in range(8)]))
    assert sorted(added.version.version for added in made) == list(range(1, 9))
    assert host.version == host.ledger.newest == 8


def test_of_two_conditional_writes_one_is_stale(host: Host) -> None:
    host.writer.add(teaching(if_match=0))
    with pytest.raises(StaleVersion, match="names version 0, the newest is 1"):
        host.writer.add(teaching(if_match=0))


def test_pending_writers_are_bounded(host_of: OpenHost) -> None:
    host = host_of(max_pending_writes=1)
    consolidator = fake(host).consolidator
    consolidator.gate = threading.Semaphore(0)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(host.writer.add, teaching())
        consolidator.entered.acquire()
        with pytest.raises(TooManyWrites, match="1 writes are under way"):
            host.writer.add(teaching("The A is B."))
        consolidator.gate.release()
        assert first.result().version.version == 1
    assert host.writer.retract(first.result().facts[0].id).version.version == 2


def test_key_under_way_is_refused(host: Host) -> None:
    consolidator = fake(host).consolidator
    consolidator.gate = threading.Semaphore(0)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(host.writer.add, teaching(key="k"))
        consolidator.entered.acquire()
        with pytest.raises(KeyInFlight):
            host.writer.add(teaching(key="k"))
        consolidator.gate.release()
        assert first.result().version.version == 1
    assert host.writer.add(teaching(key="k")).replayed


def test_closing_lets_the_write_under_way_end_and_refuses_later_ones(host: Host) -> None:
    consolidator = fake(host).consolidator
    consolidator.gate = threading.Semaphore(0)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(host.writer.add, teaching())
        consolidator.entered.acquire()
        closed = pool.submit(host.close)
        consolidator.gate.release()
        closed.result()
        assert host.version == 1
        assert first.result().version.version == 1
    with pytest.raises(ReadOnly, match="shutting down"):
        host.writer.add(teaching("The A is B."))


def test_rollback_does_not_wait_for_what_is_being_learned(host: Host) -> None:
    host.writer.add(teaching("The sky is blue."))
    consolidator = fake(host).consolidator
    consolidator.gate = threading.Semaphore(0)
    with ThreadPoolExecutor(1) as pool:
        learning = pool.submit(host.writer.add, teaching())
        consolidator.entered.acquire()
        assert host.writer.activate(0).version.version == 2
        assert (host.version, fake(host).bank.sentences(2)) == (2, [])
        consolidator.gate.release()
        assert learning.result().version.version == 3
    assert fake(host).bank.sentences(3) == [FACT]


def test_cancelling_a_write_stops_nobody_else(host: Host) -> None:
    command = teaching()
    cancelled = replace(command, cancelled=threading.Event())
    cancelled.cancelled.set()
    host.writer.stop_if_cancelled()
    with host.writer._cancellable(command):
        host.writer._under_way = cancelled  # waits for its turn at the engine, where another's work goes on
        host.engine.execute(host.writer.stop_if_cancelled)
        with pytest.raises(Cancelled):
            host.writer._compute(host.writer.stop_if_cancelled)


def test_key_of_a_commit_that_may_not_last_finds_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = host.ledger.commit

    def commit_and_fail(*arguments: Any) -> Any:
        commit(*arguments)
        raise StorageFailed("cannot write the ledger: disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(host.ledger, "commit", commit_and_fail)
        with pytest.raises(StorageFailed):
            host.writer.add(teaching(key="k"))
    assert (host.ledger.newest, host.version) == (1, 0)
    with pytest.raises(ReadOnly, match="disk I/O error"):
        host.writer.add(teaching(key="k"))
