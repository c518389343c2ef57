"""Facts that expire by themselves, on a clock that the test turns."""

import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from service.commands import AddFacts, ReadOnly
from service.fact_requests import add_command
from service.host import Host
from service.housekeeping import Expiry, Housekeeping
from service.ledger import SYSTEM, FactState, VersionKind
from service.schemas.facts import FactIn
from tests.service.conftest import OpenHost

HOUR = timedelta(hours=1)


@dataclass
class Clock:
    """A moment that stands still."""

    moment: datetime

    def __call__(self) -> datetime:
        return self.moment


@pytest.fixture
def clock() -> Clock:
    return Clock(datetime.now(UTC))


@pytest.fixture
def expiry(host: Host, clock: Clock) -> Expiry:
    return expiry_of(host, clock)


def expiry_of(host: Host, clock: Clock) -> Expiry:
    return Expiry(host.ledger, host.writer, lambda: host.version, clock)


def teaching(text: str, clock: Clock, hours: float | None = None) -> AddFacts:
    moment = None if hours is None else (clock.moment + hours * HOUR).isoformat()
    return add_command([FactIn(fact=text, expires_at=moment)], 2, "anonymous")


def state(host: Host) -> tuple[int, set[str]]:
    return host.version, {
        stored.fact.request["fact"] for stored in host.ledger.facts(state=FactState.PUBLISHED)
    }


def test_fact_is_retracted_when_its_time_has_come(host: Host, expiry: Expiry, clock: Clock) -> None:
    host.writer.add(teaching("The A is B.", clock, hours=2))
    host.writer.add(teaching("The C is D.", clock, hours=1))
    host.writer.add(teaching("The E is F.", clock))
    clock.moment += HOUR - timedelta(milliseconds=2)
    expiry.tick()
    assert host.version == 3
    clock.moment += timedelta(milliseconds=2)
    expiry.tick()
    assert state(host) == (4, {"The A is B.", "The E is F."})
    clock.moment += HOUR
    expiry.tick()
    expiry.tick()
    assert state(host) == (5, {"The E is F."})
    version = host.ledger.version(5)
    assert version is not None
    assert version.kind is VersionKind.RETRACT
    assert host.ledger.audit()[-1].actor == SYSTEM


def test_facts_that_expire_together_die_in_one_version(host: Host, expiry: Expiry, clock: Clock) -> None:
    for name in "ABC":
        host.writer.add(teaching(f"The {name} is X.", clock, hours=1))
    clock.moment += 2 * HOUR
    expiry.tick()
    assert state(host) == (4, set())


def test_what_expired_while_nothing_ran_is_retracted_at_the_start(host_of: OpenHost, clock: Clock) -> None:
    host_of().writer.add(teaching("The A is B.", clock, hours=1))
    clock.moment += 2 * HOUR
    host = host_of()
    expiry_of(host, clock).tick()
    assert state(host) == (2, set())


def test_what_a_rollback_brings_back_expires_again(host: Host, expiry: Expiry, clock: Clock) -> None:
    host.writer.add(teaching("The A is B.", clock, hours=1))
    clock.moment += 2 * HOUR
    expiry.tick()
    host.writer.activate(1)
    assert state(host) == (3, {"The A is B."})
    expiry.tick()
    assert state(host) == (4, set())


def test_fact_that_was_retracted_by_hand_does_not_expire(host: Host, expiry: Expiry, clock: Clock) -> None:
    fact = host.writer.add(teaching("The A is B.", clock, hours=1)).facts[0]
    host.writer.retract(fact.id)
    clock.moment += 2 * HOUR
    expiry.tick()
    assert host.version == 2


def test_of_two_schedulers_one_finds_nothing_to_do(host: Host, clock: Clock) -> None:
    first, second = expiry_of(host, clock), expiry_of(host, clock)
    host.writer.add(teaching("The A is B.", clock, hours=1))
    first.tick()
    second.tick()
    clock.moment += 2 * HOUR
    first.tick()
    second.tick()
    assert host.version == 2


def test_expiry_that_failed_is_tried_again(host: Host, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    chores = Housekeeping([expiry_of(host, clock).tick])
    host.writer.add(teaching("The A is B.", clock, hours=1))
    clock.moment += 2 * HOUR

    def refused(_moment: str) -> None:
        raise ReadOnly("the disk is broken")

    with monkeypatch.context() as patch:
        patch.setattr(host.writer, "expire", refused)
        chores.tick()
        chores.tick()
    assert host.version == 1
    chores.tick()
    assert host.version == 2


def test_chore_that_breaks_or_hangs_stops_no_other() -> None:
    broken, hanging, done = threading.Event(), threading.Event(), threading.Semaphore(0)

    def breaks() -> None:
        if not broken.is_set():
            broken.set()
            raise RuntimeError("a bug")
        done.release()

    chores = Housekeeping([breaks, hanging.wait], every_s=0.01)
    chores.start()
    assert done.acquire(timeout=60)
    hanging.set()
    chores.close(time.monotonic() + 60)
