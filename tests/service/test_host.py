"""What a restart finds, and what it refuses."""

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.blobs import BlobDamaged, BlobMissing
from service.host import Host, open_host
from service.ledger import DataFolderBusy, LedgerDamaged, WrongCheckpoint
from service.settings import Settings
from tests.service.conftest import OpenHost, client_of, fake, settled
from tests.service.fakes import FakeRuntime, load_fake_runtime

FACT = "The CEO of TechCorp is Dr. Sarah Chen."
QUESTION = "Who is the CEO of TechCorp?"


async def teach(client: httpx2.AsyncClient, fact: str = FACT) -> Any:
    answer = await client.post("/facts", json={"fact": fact})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def ask(host: Host, **more: Any) -> str:
    async with client_of(host) as client:
        answer = await client.post("/generate", json={"prompt": QUESTION, **more})
    text: str = answer.json()["text"]
    return text


@pytest.fixture
async def taught(host_of: OpenHost, data: Path) -> Path:
    """A data folder with one fact in it, closed."""
    host = host_of()
    async with client_of(host) as client:
        await teach(client)
    host.close()
    return data


async def test_facts_survive_a_restart(taught: Path, host_of: OpenHost) -> None:
    host = host_of()
    assert host.version == 1
    assert await ask(host) == " Dr. Sarah Chen."
    assert await ask(host, weights_version=0) == " I don't know."


async def test_whole_history_survives_a_restart(host_of: OpenHost) -> None:
    host = host_of()
    async with client_of(host) as client:
        made = await teach(client)
        await teach(client, "The capital of Atlantis is Poseidon.")
        await client.delete(f"/facts/{made['id']}")
        await client.post("/versions/1/activate")
        before = (await client.get("/versions")).json()
    answers = [await ask(host, weights_version=version) for version in range(5)]
    restarted = host_of()
    async with client_of(restarted) as client:
        assert (await client.get("/versions")).json() == before
    assert [await ask(restarted, weights_version=v) for v in range(5)] == answers
    assert answers[4] == answers[1] == " Dr. Sarah Chen."
    assert answers[3] == answers[0] == " I don't know."


async def test_same_versions_are_kept_after_a_restart(host_of: OpenHost) -> None:
    host = host_of(keep_versions=2)
    async with client_of(host) as client:
        for number in range(5):
            await teach(client, f"The X{number} is Y.")
    settled(host)
    kept = (host.runtime.bank.oldest, host.runtime.bank.version)
    assert kept == (3, 5)
    again = host_of(keep_versions=2)
    settled(again)
    assert (again.runtime.bank.oldest, again.runtime.bank.version) == kept
    assert b"npt_live_versions 3.0" in again.metrics.render()


async def test_version_that_is_no_longer_kept_can_be_rolled_back_to(host_of: OpenHost) -> None:
    host = host_of(keep_versions=0)
    async with client_of(host) as client:
        made = await teach(client)
        await client.delete(f"/facts/{made['id']}")
        await teach(client, "The X is Y.")
        settled(host)
        assert fake(host).bank.sentences(1) == []
        assert (await client.post("/versions/1/activate")).status_code == 201
    assert await ask(host) == " Dr. Sarah Chen."
    assert fake(host).bank.sentences(4) == [FACT]


def refusal(data: Path, error: type[Exception]) -> str:
    with pytest.raises(error) as caught:
        open_host(Settings(data=data), load_fake_runtime)
    message = str(caught.value)
    assert "\n" not in message
    assert str(data) in message
    return message


def test_damaged_blob_is_refused(taught: Path) -> None:
    (blob,) = (taught / "blobs").iterdir()
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    assert "is damaged" in refusal(taught, BlobDamaged)


def test_missing_blob_is_refused(taught: Path) -> None:
    (blob,) = (taught / "blobs").iterdir()
    blob.unlink()
    assert "is missing" in refusal(taught, BlobMissing)


def test_damaged_ledger_is_refused_before_the_model_is_loaded(taught: Path) -> None:
    with sqlite3.connect(taught / "ledger.db") as connection:
        connection.execute('UPDATE facts SET request = \'{"fact":"The sky is green."}\'')
    connection.close()

    def never(_source: str, /, **_placement: object) -> FakeRuntime:
        raise AssertionError

    with pytest.raises(LedgerDamaged, match="chain hash does not match"):
        open_host(Settings(data=taught), never)


def test_refused_folder_is_free_again(taught: Path, host_of: OpenHost) -> None:
    (blob,) = (taught / "blobs").iterdir()
    content = blob.read_bytes()
    blob.write_bytes(b"")
    refusal(taught, BlobDamaged)
    blob.write_bytes(content)
    assert host_of().version == 1


def test_one_process_owns_a_folder(host: Host, data: Path) -> None:
    assert "in use" in refusal(data, DataFolderBusy)


def test_facts_of_another_checkpoint_are_refused(taught: Path) -> None:
    def load_another(source: str, /, **_placement: object) -> FakeRuntime:
        return replace(load_fake_runtime(source), fingerprint="0" * 64)

    with pytest.raises(WrongCheckpoint, match="another checkpoint"):
        open_host(Settings(data=taught), load_another)
