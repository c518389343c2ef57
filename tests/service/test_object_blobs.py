"""Blobs in a real server of S3's protocol, and what happens when it does not answer."""

import socket
from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer

from service.blobs import BlobDamaged, BlobMissing, BlobUnavailable
from service.host import open_host
from service.object_blobs import READS, ObjectBlobs
from service.settings import Settings
from tests.service.conftest import OpenHost, client_of, fake
from tests.service.fakes import load_fake_runtime
from tests.service.s3 import started_server

BUCKET = "weights"
URL = f"s3://{BUCKET}/npt"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadedMotoServer]:
    server, url = started_server()
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3().create_bucket(Bucket=BUCKET)
    yield server
    server.stop()


def s3() -> "boto3.client":
    return boto3.client("s3", region_name="us-east-1")


def test_blob_is_found_by_its_content(store: ThreadedMotoServer) -> None:
    blobs = ObjectBlobs(URL)
    name = blobs.put(b"weights")
    assert blobs.put(b"weights") == name
    assert ObjectBlobs(URL).get(name) == b"weights"
    assert [each.name for each in blobs] == [name]
    keys = [entry["Key"] for entry in s3().list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert keys == [f"npt/{name}"]
    blobs.delete(name)
    blobs.delete(name)
    assert list(blobs) == []


def test_damaged_or_missing_blob_is_refused(store: ThreadedMotoServer) -> None:
    blobs = ObjectBlobs(URL)
    name = blobs.put(b"weights")
    s3().put_object(Bucket=BUCKET, Key=f"npt/{name}", Body=b"weightz")
    with pytest.raises(BlobDamaged, match="does not match its name"):
        blobs.get(name)
    with pytest.raises(BlobMissing, match="is missing"):
        blobs.get("0" * 64)


@pytest.mark.parametrize(("spoilt", "given"), [(READS - 1, True), (READS, False)])
def test_what_is_spoilt_on_its_way_is_read_again(
    store: ThreadedMotoServer, monkeypatch: pytest.MonkeyPatch, spoilt: int, given: bool
) -> None:
    blobs = ObjectBlobs(URL)
    name = blobs.put(b"weights")
    answers = iter([b"weightz"] * spoilt + [b"weights"])

    class Answer:
        def bytes(self) -> "Answer":
            return self

        def to_bytes(self) -> bytes:
            return next(answers)

    class Store:
        def get(self, _: str) -> Answer:
            return Answer()

    monkeypatch.setattr(blobs, "_store", Store())
    if given:
        assert blobs.get(name) == b"weights"
    else:
        with pytest.raises(BlobDamaged):
            blobs.get(name)


def test_many_are_given_in_order_up_to_the_one_that_is_missing(store: ThreadedMotoServer) -> None:
    blobs = ObjectBlobs(URL)
    data = [bytes([number]) * 100 for number in range(20)]
    names = [blobs.put(each) for each in data]
    assert list(blobs.get_all(names)) == data
    assert list(blobs.get_all([])) == []
    blobs.delete(names[12])
    given: list[bytes] = []
    with pytest.raises(BlobMissing, match=names[12]):
        given.extend(blobs.get_all(names))
    assert given == data[:12]


def test_bucket_that_is_not_there_is_told_in_one_line(store: ThreadedMotoServer) -> None:
    with pytest.raises(BlobUnavailable, match="s3://elsewhere") as caught:
        ObjectBlobs("s3://elsewhere")
    assert "\n" not in str(caught.value)


async def test_facts_live_in_the_store_and_nothing_is_written_while_it_is_away(
    store: ThreadedMotoServer, host_of: OpenHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = host_of(blob_store=URL)
    async with client_of(host) as client:
        assert (await client.post("/facts", json={"fact": "The sky is blue."})).status_code == 201
        store.stop()
        refused = await client.post("/facts", json={"fact": "The sea is green."})
        assert (refused.status_code, refused.json()["type"]) == (503, "npt:storage-unavailable")
        assert refused.headers["Retry-After"] == "1"
        assert (await client.post("/generate", json={"prompt": "The sky?"})).json()["text"] == " blue."
        assert (await client.get("/facts")).json()["weights_version"] == 1
    assert fake(host).bank.sentences(1) == ["The sky is blue."]


def test_start_without_the_store_is_refused_in_one_line(
    data_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        with pytest.raises(BlobUnavailable) as caught:
            open_host(data_settings, load_fake_runtime)
    assert "\n" not in str(caught.value)


@pytest.fixture
def data_settings(data: "object") -> Settings:
    return Settings(data=data, blob_store=URL)  # type: ignore[arg-type]
