"""A bank is brought to a version of the ledger: many versions at once, and never beyond what is sound."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service import replica as replicas
from service.blobs import BlobDamaged, FolderBlobs
from service.fact_requests import add_command
from service.host import Host
from service.ledger import ANONYMOUS, Ledger, sqlite_url
from service.replica import Replica
from service.schemas.facts import FactContent
from service.stores import BLOB_FOLDER, LEDGER_FILE
from tests.service.conftest import OpenHost, fake
from tests.service.fakes import FakeBank


def teach(host: Host, *names: str) -> None:
    asked = [FactContent(fact=f"The price of {name} is {name * 3}.") for name in names]
    host.writer.add(add_command(asked, 2, ANONYMOUS, None, batch=len(names) > 1))


@pytest.fixture
def history(host_of: OpenHost, data: Path) -> Iterator[tuple[Ledger, FolderBlobs, FakeBank]]:
    """Facts, a batch, a retraction, a rollback, and facts again; and the bank that saw it all."""
    host = host_of()
    for name in "abc":
        teach(host, name)
    teach(host, "d", "e")
    host.writer.retract(min(host.ledger.live(host.version)))
    host.writer.activate(2)
    for name in "fgh":
        teach(host, name)
    bank = fake(host).bank
    host.close()
    ledger = Ledger(sqlite_url(data / LEDGER_FILE))
    yield ledger, FolderBlobs(data / BLOB_FOLDER), bank
    ledger.close()


@pytest.mark.parametrize("together", [1, 2, replicas.BATCH])
def test_every_version_is_what_it_was(
    history: tuple[Ledger, FolderBlobs, FakeBank], together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, blobs, seen = history
    monkeypatch.setattr(replicas, "BATCH", max(together, 2))
    bank = FakeBank()
    replica = Replica(ledger, blobs, bank)
    assert replica.catch_up() == seen.version
    assert replica.chain == ledger.versions()[-1].chain
    for version in range(seen.version + 1):
        assert sorted(bank.sentences(version)) == sorted(seen.sentences(version))


def test_versions_are_published_at_once_where_they_only_bring_facts(
    history: tuple[Ledger, FolderBlobs, FakeBank],
) -> None:
    ledger, blobs, _ = history
    published: list[list[int]] = []

    class Watched(FakeBank):
        def publish_all(self, births, /):  # type: ignore[no-untyped-def]
            published.append(list(births))
            super().publish_all(births)

    Replica(ledger, blobs, Watched()).catch_up()
    assert published == [[1, 2, 3, 4], [7, 8, 9]]


def test_what_lies_before_a_damaged_blob_is_published(
    history: tuple[Ledger, FolderBlobs, FakeBank], data: Path
) -> None:
    ledger, blobs, seen = history
    (third,) = ledger.facts_by_id(ledger.versions(2, 1)[0].births).values()
    (data / BLOB_FOLDER / third.blob).write_bytes(b"rotten")
    bank = FakeBank()
    replica = Replica(ledger, blobs, bank)
    with pytest.raises(BlobDamaged):
        replica.catch_up()
    assert (bank.version, replica.chain) == (2, ledger.versions()[2].chain)
    assert bank.sentences(2) == seen.sentences(2)
