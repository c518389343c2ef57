"""Writes that are answered before they are done."""

import threading
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import anyio
import httpx2
import pytest
from anyio import to_thread

from npt_core.consolidation import Step
from service.commands import OperationElsewhere, OperationNotFound
from service.host import Host
from service.ledger import IdempotencyKey, timestamp
from service.ledger.operations import Operation, OperationState
from service.operations import BEAT_S, KEPT, LEASE_S, Operations
from service.problems import INTERRUPTED
from service.schemas.facts import FactCreated
from service.teaching import recalled
from tests.service.api.test_facts import FACT, knows, unchanged
from tests.service.conftest import OpenHost, client_of, fake
from tests.service.test_housekeeping import Clock
from tests.service.test_writer import teaching

Client = httpx2.AsyncClient
ASYNC = {"Prefer": "respond-async"}


async def later(client: Client, path: str = "/facts", body: Any = None, **headers: str) -> Any:
    answer = await client.post(path, json=body or {"fact": FACT}, headers=ASYNC | headers)
    assert answer.status_code == 202, answer.text
    assert answer.headers["Preference-Applied"] == "respond-async"
    assert answer.headers["Location"] == f"/operations/{answer.json()['id']}"
    return answer.json()


async def ended(client: Client, operation: Any) -> Any:
    with anyio.fail_after(30):
        while True:
            answer = await client.get(f"/operations/{operation['id']}")
            found = answer.json()
            if found["state"] not in ("pending", "running"):
                return found
            assert answer.headers["Retry-After"] == "1"
            await anyio.sleep(0.01)


def gated(host: Host) -> threading.Semaphore:
    """From now on a write waits until it is let on."""
    gate = fake(host).consolidator.gate = threading.Semaphore(0)
    return gate


async def entered(host: Host) -> None:
    await to_thread.run_sync(fake(host).consolidator.entered.acquire)


async def test_operation_ends_with_what_would_have_been_answered(client: Client) -> None:
    operation = await ended(client, await later(client))
    assert operation["state"] == "succeeded"
    made = operation["result"]
    assert made["weights_version"] == 1
    assert (await client.get(f"/facts/{made['id']}")).json()["fact"] == FACT
    assert await knows(client) == " Dr. Sarah Chen."


async def test_batches_and_dry_runs_can_wait_too(client: Client) -> None:
    body = {"facts": [{"fact": FACT}, {"fact": "The sky is blue."}]}
    rehearsed = await ended(client, await later(client, "/facts:batch", body | {"dry_run": True}))
    assert len(rehearsed["result"]["reports"]) == 2
    assert await unchanged(client)
    written = await ended(client, await later(client, "/facts:batch", body))
    assert len(written["result"]["facts"]) == 2


async def test_refused_operation_tells_the_problem(client: Client) -> None:
    operation = await ended(client, await later(client, body={"fact": "This is forgettable."}))
    assert operation["state"] == "failed"
    assert operation["problem"]["type"] == "npt:fact-not-recalled"
    assert operation["problem"]["report"]["recall_after"] == 0.2
    assert await unchanged(client)


@pytest.mark.parametrize("prefer", ["wait=5, Respond-Async;x=1", "respond-async,handling=strict"])
async def test_preferences_are_read_as_the_rfc_has_it(client: Client, prefer: str) -> None:
    answer = await client.post("/facts", json={"fact": FACT}, headers={"Prefer": prefer})
    assert answer.status_code == 202
    await ended(client, answer.json())


async def test_other_preferences_change_nothing(client: Client) -> None:
    answer = await client.post("/facts", json={"fact": FACT}, headers={"Prefer": "return=minimal"})
    assert answer.status_code == 201
    assert "Preference-Applied" not in answer.headers


async def test_request_that_does_not_fit_is_refused_at_once(client: Client) -> None:
    answer = await client.post("/facts", json={"fact": FACT, "layers": [9]}, headers=ASYNC)
    assert answer.status_code == 422
    assert (await client.get("/operations")).json()["items"] == []


async def test_operations_run_in_turn_and_are_listed(host: Host, client: Client) -> None:
    gate = gated(host)
    made = [await later(client, body={"fact": f"The {name} is X."}) for name in "ABC"]
    await entered(host)
    page = (await client.get("/operations", params={"limit": 2})).json()
    assert [o["id"] for o in page["items"]] == [o["id"] for o in made[:2]]
    rest = (await client.get("/operations", params={"cursor": page["next_cursor"]})).json()
    assert [(o["id"], o["state"]) for o in rest["items"]] == [(made[2]["id"], "pending")]
    running = (await client.get("/operations", params={"state": "running"})).json()["items"]
    assert [o["id"] for o in running] == [made[0]["id"]]
    gate.release(3)
    versions = [(await ended(client, o))["result"]["weights_version"] for o in made]
    assert versions == [1, 2, 3]


async def test_running_operation_tells_its_step(host: Host, client: Client) -> None:
    gate = fake(host).consolidator.step_gate = threading.Semaphore(0)
    operation = await later(client)
    assert operation["step"] is None
    for step in (Step.STUDY, Step.WRITE, Step.LEAK_CHECK, Step.VERIFY):
        with anyio.fail_after(30):
            while (found := (await client.get(f"/operations/{operation['id']}")).json())["step"] != step:
                await anyio.sleep(0.01)
        assert found["state"] == "running"
        assert [o["step"] for o in (await client.get("/operations")).json()["items"]] == [step]
        gate.release()
    assert (await ended(client, operation))["step"] is None


async def test_publication_is_the_last_step(
    host: Host, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, on = threading.Event(), threading.Event()
    put = host.blobs.put

    def slow(content: bytes) -> str:
        begun.set()
        on.wait()
        return put(content)

    monkeypatch.setattr(host.blobs, "put", slow)
    operation = await later(client)
    await to_thread.run_sync(begun.wait)
    assert (await client.get(f"/operations/{operation['id']}")).json()["step"] == "publish"
    on.set()
    assert (await ended(client, operation))["state"] == "succeeded"


async def test_operation_that_waits_never_begins_once_cancelled(host: Host, client: Client) -> None:
    gate = gated(host)
    first = await later(client)
    second = await later(client, body={"fact": "The sky is blue."})
    await entered(host)
    answer = await client.delete(f"/operations/{second['id']}")
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    gate.release(10)
    assert (await ended(client, first))["state"] == "succeeded"
    assert [r.fact for r in fake(host).consolidator.requests] == [FACT]
    assert (await client.get("/versions")).json()["weights_version"] == 1


async def test_operation_that_runs_ends_between_its_steps(host: Host, client: Client) -> None:
    gated(host)
    operation = await later(client)
    await entered(host)
    answer = await client.delete(f"/operations/{operation['id']}")
    assert answer.status_code in (200, 202)
    assert (await ended(client, operation))["state"] == "cancelled"
    assert await unchanged(client)


async def test_operation_is_not_cancelled_after_its_commit(
    host: Host, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed, on = threading.Event(), threading.Event()
    catch_up = host.replica.catch_up

    def slow(*known: Any) -> int:
        if known:
            committed.set()
            on.wait()
        return catch_up(*known)

    monkeypatch.setattr(host.replica, "catch_up", slow)
    operation = await later(client)
    await to_thread.run_sync(committed.wait)
    assert (await client.delete(f"/operations/{operation['id']}")).status_code == 202
    on.set()
    assert (await ended(client, operation))["state"] == "succeeded"
    answer = await client.delete(f"/operations/{operation['id']}")
    assert (answer.status_code, answer.json()["type"]) == (409, "npt:operation-ended")


async def test_unknown_operation_is_told(client: Client) -> None:
    for method in ("GET", "DELETE"):
        answer = await client.request(method, "/operations/op_1")
        assert (answer.status_code, answer.json()["type"]) == (404, "npt:operation-not-found")


async def test_waiting_operations_are_bounded(host_of: OpenHost) -> None:
    host = host_of(max_pending_operations=1)
    gate = gated(host)
    async with client_of(host) as client:
        first = await later(client)
        answer = await client.post("/facts", json={"fact": "The sky is blue."}, headers=ASYNC)
        assert (answer.status_code, answer.json()["type"]) == (503, "npt:overloaded")
        gate.release(10)
        await ended(client, first)


async def test_key_of_an_operation_answers_a_request_that_waits(client: Client) -> None:
    operation = await ended(client, await later(client, **{"Idempotency-Key": "k"}))
    answer = await client.post("/facts", json={"fact": FACT}, headers={"Idempotency-Key": "k"})
    assert answer.json() == operation["result"]
    again = await ended(client, await later(client, **{"Idempotency-Key": "k"}))
    assert again["result"] == operation["result"]


LONG_AGO = "2026-01-01T00:00:00.000Z"


def abandoned(host: Host, key: IdempotencyKey, state: OperationState, moment: str = LONG_AGO) -> Operation:
    """An operation of a process that is gone."""
    request = {"facts": [], "dry_run": False, "idempotency_key": key.key, "digest": key.digest}
    operation = Operation(
        f"op_{key.key}", "anonymous", "facts.create", state, request, None, "gone", moment, moment
    )
    host.operations._log.add(operation)
    return operation


@pytest.mark.parametrize("state", [OperationState.PENDING, OperationState.RUNNING])
def test_what_a_dead_process_left_is_told_as_failed(host_of: OpenHost, state: OperationState) -> None:
    lost = abandoned(host_of(), IdempotencyKey("lost", "d"), state)
    found = host_of().operations.get(lost.id)
    assert found.state is OperationState.FAILED
    assert found.result is not None
    assert found.result["type"] == INTERRUPTED.type


def test_what_a_dead_process_had_written_is_told_as_done(host_of: OpenHost) -> None:
    host = host_of()
    command = teaching(key="done")
    added = host.writer.add(command)
    assert command.key is not None
    done = abandoned(host, command.key, OperationState.RUNNING)
    found = host_of().operations.get(done.id)
    assert found.state is OperationState.SUCCEEDED
    assert found.result == FactCreated.of(added).model_dump(mode="json")


def test_operation_that_waits_when_the_server_stops_is_told_as_failed(host_of: OpenHost) -> None:
    host = host_of()
    begun, on = threading.Event(), threading.Event()

    def work(_key: IdempotencyKey, _cancelled: threading.Event, _tell: Any) -> Any:
        begun.set()
        on.wait()
        return recalled(host.ledger, host.replica, "facts.batch", 0)

    first, second = (host.operations.submit("a", "facts.batch", {}, None, work) for _ in range(2))
    begun.wait()
    closing = threading.Thread(target=host.operations.close, args=(time.monotonic() + 60,))
    closing.start()
    on.set()
    closing.join()
    assert host.operations.get(first.id).state is OperationState.SUCCEEDED
    assert host.operations.get(second.id).state is OperationState.FAILED


def test_operations_of_another_replica_are_its_own_until_it_is_silent(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(datetime.now(UTC))
    monkeypatch.setattr(type(host.ledger), "shared", True)
    operations = Operations(host.ledger, partial(recalled, host.ledger, host.replica), clock=clock)
    theirs = abandoned(host, IdempotencyKey("theirs", "d"), OperationState.RUNNING, timestamp(clock.moment))
    clock.moment += timedelta(seconds=LEASE_S - 1)
    operations.tick()
    assert operations.get(theirs.id).state is OperationState.RUNNING
    with pytest.raises(OperationElsewhere):
        operations.cancel(theirs.id)
    clock.moment += timedelta(seconds=BEAT_S)
    operations.tick()
    assert operations.get(theirs.id).state is OperationState.FAILED
    operations.close(time.monotonic() + 30)


def test_process_is_heard_of_while_it_works(host: Host) -> None:
    clock, on = Clock(datetime.now(UTC)), threading.Event()
    operations = Operations(host.ledger, partial(recalled, host.ledger, host.replica), clock=clock)

    def work(_key: IdempotencyKey, _cancelled: threading.Event, _tell: Any) -> Any:
        on.wait()
        return recalled(host.ledger, host.replica, "facts.batch", 0)

    operation = operations.submit("a", "facts.batch", {}, None, work)
    clock.moment += timedelta(seconds=BEAT_S)
    operations.tick()
    assert operations.get(operation.id).updated_at == timestamp(clock.moment)
    on.set()
    operations.close(time.monotonic() + 30)
    clock.moment += KEPT + timedelta(seconds=BEAT_S)
    operations.tick()
    with pytest.raises(OperationNotFound):
        operations.get(operation.id)
