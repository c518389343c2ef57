from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from service.app import create_app
from service.host import Host, open_host
from service.logs import configure_logging
from service.settings import Settings
from tests.service.fakes import FakeRuntime, load_fake_runtime
from tests.service.postgres import PostgresServer, postgres_or_skip

OpenHost = Callable[..., Host]


@pytest.fixture(scope="session", autouse=True)
def _quiet_logs() -> None:
    """As in production, and not the development console, which draws every failure at length."""
    configure_logging("CRITICAL")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Of the tests of one run; each asks it for a database of its own."""
    server = postgres_or_skip()
    yield server
    server.remove()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def host_of(data: Path) -> Iterator[OpenHost]:
    """Opens hosts on one data folder, one after the other; the last one is closed at the end."""
    opened: list[Host] = []

    def open_one(**settings: Any) -> Host:
        for host in opened:
            host.close()
        opened.append(open_host(Settings(data=data, **settings), load_fake_runtime))
        return opened[-1]

    yield open_one
    for host in opened:
        runtime = fake(host)
        for gate in (runtime.model.gate, runtime.consolidator.gate, runtime.consolidator.step_gate):
            if gate is not None:
                gate.release(10_000)
        host.close()


@pytest.fixture
def host(host_of: OpenHost) -> Host:
    return host_of()


@pytest_asyncio.fixture
async def client(host: Host) -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(host) as connected:
        yield connected


def client_of(host: Host) -> httpx2.AsyncClient:
    """A client of the application in this process; server errors come back as answers."""
    transport = httpx2.ASGITransport(create_app(host), raise_app_exceptions=False)
    return httpx2.AsyncClient(transport=transport, base_url="http://localhost")


def settled(host: Host) -> None:
    """What the engine was given to do is done: old versions are let go of."""
    host.engine.execute(lambda: None)


def fake(host: Host) -> FakeRuntime:
    """The fake runtime behind a host."""
    assert isinstance(host.runtime, FakeRuntime)
    return host.runtime
