"""Several replicas on one PostgreSQL: any of them writes, all know the same."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread

from service.commands import FoldFacts
from service.fact_requests import add_command
from service.host import Host, open_host
from service.ledger import (
    ANONYMOUS,
    Change,
    Ledger,
    LedgerDamaged,
    LedgerUnavailable,
    VersionKind,
    database,
    timestamp,
)
from service.schemas.facts import FactIn
from service.schemas.versions import BARS
from service.settings import Settings
from tests.service.api.test_operations import ended
from tests.service.conftest import client_of, fake
from tests.service.fakes import load_fake_runtime
from tests.service.postgres import PostgresServer, postgres_or_skip
from tests.service.test_housekeeping import Clock

REPLICAS = 3


def teaching(text: str, key: str | None = None) -> Any:
    return add_command([FactIn(fact=text)], 2, ANONYMOUS, key)


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """One of its own, to be stopped and started."""
    own = postgres_or_skip(durable=True)
    yield own
    own.remove()


Open = Callable[[str], list[Host]]


@pytest.fixture
def replicas(tmp_path: Path) -> Iterator[Open]:
    opened: list[Host] = []

    def open_all(url: str) -> list[Host]:
        for number in range(REPLICAS):
            folder = tmp_path / str(number)
            settings = Settings(data=folder, database_url=url)
            folder.mkdir()
            # What a shared store is in production.
            (folder / "blobs").symlink_to(tmp_path / "blobs", target_is_directory=True)
            (tmp_path / "blobs").mkdir(exist_ok=True)
            opened.append(open_host(settings, load_fake_runtime))
        return opened

    yield open_all
    for host in opened:
        host.close()


async def at(host: Host, version: int) -> None:
    assert await host.gate.wait_for(version, 60)


async def test_all_write_at_once_and_come_to_know_the_same(postgres: PostgresServer, replicas: Open) -> None:
    hosts = replicas(postgres.new_database())
    sentences = [f"The place {letter} is Town {letter}." for letter in "ABCDEFGHIJKL"]
    with ThreadPoolExecutor(len(sentences)) as pool:
        jobs = zip([hosts[i % REPLICAS] for i in range(len(sentences))], sentences, strict=True)
        added = list(pool.map(lambda job: job[0].writer.add(teaching(job[1])), jobs))
    assert sorted(each.version.version for each in added) == list(range(1, len(sentences) + 1))
    for host in hosts:
        await at(host, len(sentences))
    assert len({host.replica.chain for host in hosts}) == 1
    scraped = [host.metrics.render().decode() for host in hosts]
    fingerprint = hosts[0].runtime.fingerprint
    labels = f'chain="{hosts[0].replica.chain}",fingerprint="{fingerprint}",version="{len(sentences)}"'
    line = f"npt_weights_chain_info{{{labels}}} 1.0"
    assert all(line in text for text in scraped)
    known = [sorted(fake(host).bank.sentences(host.version)) for host in hosts]
    assert known == [sorted(sentences)] * REPLICAS


async def test_what_one_wrote_is_read_at_another(postgres: PostgresServer, replicas: Open) -> None:
    first, second, _ = replicas(postgres.new_database())
    version = first.writer.add(teaching("The sky is blue.")).version.version
    async with client_of(second) as client:
        answer = await client.post(
            "/generate", json={"prompt": "What colour is the sky?", "min_weights_version": version}
        )
    assert (answer.json()["text"], answer.json()["weights_version"]) == (" blue.", version)


async def test_version_that_another_just_made_is_waited_for(
    postgres: PostgresServer, replicas: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = replicas(postgres.new_database())
    go = threading.Event()
    catch_up = second.replica.catch_up
    monkeypatch.setattr(second.replica, "catch_up", lambda: go.wait(60) and catch_up())
    version = first.writer.add(teaching("The sky is blue.")).version.version
    asked = {"prompt": "What colour is the sky?", "weights_version": version}
    async with client_of(second) as client:
        # It has not heard of the version until it was asked for it.
        monkeypatch.setattr(second.gate, "wait_for", _then(go.set, second.gate.wait_for))
        answer = await client.post("/generate", json=asked)
        assert (answer.json()["text"], answer.json()["weights_version"]) == (" blue.", version)
        nowhere = await client.post("/generate", json=asked | {"weights_version": version + 1})
    assert (nowhere.status_code, nowhere.json()["type"]) == (404, "npt:version-not-found")


def _then(first: Callable[[], None], work: Callable[..., Any]) -> Callable[..., Any]:
    def both(*arguments: Any) -> Any:
        first()
        return work(*arguments)

    return both


def test_connections_are_bounded_and_their_lack_is_told(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "FREE_TIMEOUT_S", 0.01)
    ledger = Ledger(postgres.new_database())
    with ExitStack() as held:
        for _ in range(database.CONNECTIONS):
            held.enter_context(database.reading(ledger.engine))
        with ledger.listening(), pytest.raises(LedgerUnavailable, match="none of its connections"):
            ledger.versions(-1, 1)
        with ledger.listening(), pytest.raises(LedgerUnavailable, match="none of its connections"):
            ledger.commit(Change(0, VersionKind.FACT))
    ledger.close()


def test_version_that_comes_in_the_middle_of_a_write_is_built_upon(
    postgres: PostgresServer, replicas: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = replicas(postgres.new_database())
    planned, others = first.replica.planned, iter(["The sea is green."])

    def overtaken(*arguments: Any) -> Any:
        for sentence in others:
            second.writer.add(teaching(sentence))
            first.replica.catch_up()
        return planned(*arguments)

    monkeypatch.setattr(first.replica, "planned", overtaken)
    assert first.writer.add(teaching("The sky is blue.")).version.version == 2


async def test_repeated_request_is_answered_by_any_of_them(postgres: PostgresServer, replicas: Open) -> None:
    first, second, _ = replicas(postgres.new_database())
    added = first.writer.add(teaching("The sky is blue.", "k"))
    again = second.writer.add(teaching("The sky is blue.", "k"))
    assert (again.replayed, again.facts) == (True, added.facts)
    assert second.ledger.newest == 1


async def test_reads_go_on_without_the_database_and_writes_after_it_is_back(
    server: PostgresServer, replicas: Open
) -> None:
    hosts = replicas(server.new_database())
    hosts[0].writer.add(teaching("The sky is blue."))
    for host in hosts:
        await at(host, 1)
    server.stop("immediate")
    async with client_of(hosts[1]) as client:
        answer = await client.post("/generate", json={"prompt": "What colour is the sky?"})
        assert answer.json()["text"] == " blue."
        assert (await client.get("/readyz")).status_code == 200
        refused = await client.post("/facts", json={"fact": "The sea is green."})
        assert (refused.status_code, refused.json()["type"]) == (503, "npt:storage-unavailable")
        assert refused.headers["Retry-After"] == "1"
    with pytest.raises(LedgerUnavailable):
        hosts[2].writer.add(teaching("The sea is green."))
    server.start()
    hosts[2].writer.add(teaching("The sea is green."))
    for host in hosts:
        await at(host, 2)
    assert len({host.replica.chain for host in hosts}) == 1


async def test_database_that_lost_versions_is_noticed(postgres: PostgresServer, replicas: Open) -> None:
    (first, *_) = replicas(postgres.new_database())
    first.writer.add(teaching("The sky is blue."))
    with first.ledger.engine.begin() as connection:
        for table in ("audit", "changes", "facts"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
        connection.exec_driver_sql("DELETE FROM versions WHERE version = 1")
    with pytest.raises(LedgerDamaged, match="version 1, which was applied, is not there any more"):
        first.writer.add(teaching("The sea is green."))
    async with client_of(first) as client:
        answer = await client.post("/generate", json={"prompt": "What colour is the sky?"})
        assert answer.json()["text"] == " blue."


async def test_fold_of_one_reaches_the_others(postgres: PostgresServer, replicas: Open) -> None:
    first, second, third = replicas(postgres.new_database())
    sky = first.writer.add(teaching("The sky is blue.")).facts[0].id
    first.writer.add(teaching("The grass is green."))
    second.writer.fold(FoldFacts((sky,), BARS))
    third.writer.retract(sky)
    for host in (first, second, third):
        await at(host, 4)
        assert host.replica.folded == frozenset()
        assert fake(host).bank.sentences(4) == ["The grass is green."]
        assert sorted(fake(host).bank.sentences(3)) == ["The grass is green.", "The sky is blue."]


async def test_version_is_there_once_its_fold_and_its_chain_are_known(
    postgres: PostgresServer, replicas: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = replicas(postgres.new_database())
    sky = first.writer.add(teaching("The sky is blue.")).facts[0].id
    await at(second, 1)
    bank, published, go_on = fake(second).bank, threading.Event(), threading.Event()
    publish = bank.publish

    def publish_and_wait(*arguments: Any) -> None:
        publish(*arguments)
        published.set()
        go_on.wait(60)

    monkeypatch.setattr(bank, "publish", publish_and_wait)
    first.writer.fold(FoldFacts((sky,), BARS))
    assert await to_thread.run_sync(published.wait, 60)
    assert (bank.version, await second.gate.wait_for(2, 0)) == (2, False)
    go_on.set()
    await at(second, 2)
    assert (second.replica.folded, second.replica.chain) == ({sky}, first.replica.chain)


def test_fact_expires_once_whoever_notices(postgres: PostgresServer, replicas: Open) -> None:
    hosts = replicas(postgres.new_database())
    clock = Clock(datetime.now(UTC))
    moment = (clock.moment + timedelta(hours=1)).isoformat()
    hosts[0].writer.add(add_command([FactIn(fact="The sky is blue.", expires_at=moment)], 2, ANONYMOUS))
    clock.moment += timedelta(hours=2)
    with ThreadPoolExecutor(REPLICAS) as pool:
        list(pool.map(lambda host: host.writer.expire(timestamp(clock.moment)), hosts))
    assert hosts[0].ledger.newest == 2


async def test_operation_is_asked_for_at_any_replica(postgres: PostgresServer, replicas: Open) -> None:
    first, second, _ = replicas(postgres.new_database())
    gate = fake(first).consolidator.gate = threading.Semaphore(0)
    async with client_of(first) as client, client_of(second) as other:
        body = {"fact": "The sky is blue."}
        operation = (await client.post("/facts", json=body, headers={"Prefer": "respond-async"})).json()
        await to_thread.run_sync(fake(first).consolidator.entered.acquire)
        path = f"/operations/{operation['id']}"
        assert (await other.get(path)).json()["state"] == "running"
        assert (await other.delete(path)).json()["type"] == "npt:operation-elsewhere"
        gate.release(10)
        done = await ended(other, operation)
    assert (done["state"], done["result"]["weights_version"]) == ("succeeded", 1)


async def test_versions_of_others_come_while_one_learns(postgres: PostgresServer, replicas: Open) -> None:
    first, second, _ = replicas(postgres.new_database())
    gate = fake(first).consolidator.gate = threading.Semaphore(0)
    with ThreadPoolExecutor(1) as pool:
        learning = pool.submit(first.writer.add, teaching("The sky is blue."))
        await to_thread.run_sync(fake(first).consolidator.entered.acquire)
        for version in (1, 2, 3):
            second.writer.add(teaching(f"The place {version} is Town {version}."))
            await at(first, version)
        gate.release(10)
        assert learning.result().version.version == 4


async def test_postgres_is_asked_nothing_that_it_cannot_answer(
    postgres: PostgresServer, replicas: Open
) -> None:
    found = {
        "/facts?newest_first=true": 200,
        "/versions?newest_first=true": 200,
        f"/versions/{2**31 - 1}": 404,
        f"/versions/{2**31}": 422,
        "/facts/%00": 422,
        "/operations/%00": 422,
        "/operations?cursor=MToA": 422,  # 1:\0
    }
    async with client_of(replicas(postgres.new_database())[0]) as client:
        assert {path: (await client.get(path)).status_code for path in found} == found
