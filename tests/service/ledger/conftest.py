from collections.abc import Iterator
from pathlib import Path

import pytest

from service.ledger import ANONYMOUS, IdempotencyKey, Ledger, sqlite_url
from service.ledger.api_keys import ApiKeys, Scope
from service.ledger.operations import Operation, OperationLog, OperationState
from tests.service.ledger.test_ledger import BASE, birth
from tests.service.postgres import PostgresServer


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "ledger.db")
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


def operation(number: int, state: OperationState = OperationState.PENDING, owner: str = "me") -> Operation:
    request = {"facts": [{"fact": "The sky is blue."}]}
    return Operation(f"op_{number}", ANONYMOUS, "facts", state, request, None, owner, "2026-01", "2026-01")


@pytest.fixture
def full(url: str) -> Iterator[Ledger]:
    """With a row in every table."""
    opened = Ledger(url)
    opened.bind(BASE)
    opened.commit(birth(0, 0, key=IdempotencyKey("k", "d")))
    opened.commit(birth(1, 1))
    opened.add_snapshot(1, "0" * 64, ANONYMOUS)
    ApiKeys(opened).create("all", [Scope.ADMIN], ANONYMOUS, 60, 4, "2999", "secret")
    OperationLog(opened.engine).add(operation(1))
    yield opened
    opened.close()
