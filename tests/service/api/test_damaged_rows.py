"""A row that is not as it was written, beside a server that runs: told as damage, and never served."""

from typing import Any

import httpx2
import pytest

from service.host import Host
from tests.service.api.test_facts import FACT, teach
from tests.service.api.test_operations import Client, ended, entered, gated, later
from tests.service.conftest import fake

KEYED = {"Idempotency-Key": "k1"}


def change(host: Host, statement: str) -> None:
    """Behind the back of the service."""
    with host.ledger.engine.begin() as connection:
        connection.exec_driver_sql(statement)


def is_damage(answer: httpx2.Response, table: str) -> bool:
    told: Any = answer.json()
    return (answer.status_code, told["type"]) == (500, "npt:ledger-damaged") and table in told["detail"]


@pytest.mark.parametrize("column", ["digest = 'x'", "version = 0", "created_at = 'x'"])
async def test_key_that_is_damaged_is_answered_nothing(host: Host, client: Client, column: str) -> None:
    assert (await teach(client, **KEYED)).status_code == 201
    assert (await teach(client, **KEYED)).headers["Idempotency-Replayed"] == "true"
    change(host, f"UPDATE idempotency SET {column}")
    assert is_damage(await teach(client, **KEYED), "idempotency")
    assert host.version == 1


@pytest.mark.parametrize("column", ["result = '{}'", "actor = 'other'", "state = 'failed'", "action = 'x'"])
async def test_operation_that_is_damaged_is_told_to_nobody(host: Host, client: Client, column: str) -> None:
    operation = await ended(client, await later(client))
    change(host, f"UPDATE operations SET {column}")
    for method, path in (("GET", ""), ("GET", f"/{operation['id']}"), ("DELETE", f"/{operation['id']}")):
        assert is_damage(await client.request(method, f"/operations{path}"), "operations")


async def test_operation_whose_row_is_damaged_never_begins(host: Host, client: Client) -> None:
    gate = gated(host)
    first = await later(client)
    await entered(host)
    second = await later(client, body={"fact": "The sky is blue."})
    third = await later(client, body={"fact": "The sea is green."})
    change(host, f"UPDATE operations SET request = '{{}}' WHERE id = '{second['id']}'")
    gate.release(100)
    assert [(await ended(client, each))["state"] for each in (first, third)] == ["succeeded"] * 2
    assert [request.fact for request in fake(host).consolidator.requests] == [FACT, "The sea is green."]
    assert is_damage(await client.get(f"/operations/{second['id']}"), "operations")


async def test_operation_damaged_while_it_runs_holds_nobody_up(host: Host, client: Client) -> None:
    gate = gated(host)
    first = await later(client)
    await entered(host)
    change(host, "UPDATE operations SET owner = 'other'")
    gate.release(100)
    second = await later(client, body={"fact": "The sky is blue."})
    assert (await ended(client, second))["state"] == "succeeded"
    assert is_damage(await client.get(f"/operations/{first['id']}"), "operations")
