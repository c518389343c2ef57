"""The short form of `python -m torture store`."""

from pathlib import Path

import pytest

from service.blobs import BlobUnavailable
from service.object_blobs import ObjectBlobs
from tests.service.s3 import bucket_client, moto_server
from torture import store
from torture.store import BUCKET, FAULTS, UPLOAD, URL, Proxy, _is_whole, _spoilt, environment_of


@pytest.mark.timeout(600)  # a quarter of a minute alone, minutes beside other work
def test_nothing_is_lost_where_the_store_fails_midway(tmp_path: Path) -> None:
    outcome = store.run(tmp_path, facts=30)
    assert outcome.problems == []
    assert outcome.facts >= 30
    assert sum(outcome.faults.values()) > 5
    assert set(outcome.faults) <= set(FAULTS)


def test_answers_are_spoilt_as_they_are_said_to_be() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd"
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\n"
    assert _spoilt(answer, None) == head + b"abcd"
    assert _spoilt(answer, "cut").endswith(b"\r\n\r\nab")
    assert _spoilt(answer, "flipped") == head + b"abbd"


def test_upload_that_was_spoilt_is_refused_and_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "FAULTS", (UPLOAD,))
    with moto_server() as url:
        client = bucket_client(url)
        client.create_bucket(Bucket=BUCKET)
        proxy = Proxy(url, share=1.0, seed=0)
        for name, value in environment_of(proxy.url).items():
            monkeypatch.setenv(name, value)
        try:
            blobs = ObjectBlobs(f"{URL}-empty")
            with pytest.raises(BlobUnavailable, match="BadDigest"):
                blobs.put(b"weights")
            proxy.share = 0.0
            assert list(blobs) == []
            assert blobs.get(blobs.put(b"weights")) == b"weights"
        finally:
            proxy.close()
        assert proxy.faults == {UPLOAD: 1}


def test_checksum_of_an_upload_is_looked_at_as_s3_does() -> None:
    head = b"PUT /a HTTP/1.1\r\nX-Amz-Checksum-Sha256: LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=\r\n\r\n"
    assert _is_whole(head, b"hello")
    assert not _is_whole(head, b"hallo")
    assert _is_whole(b"PUT /a HTTP/1.1\r\n\r\n", b"hallo")  # nothing to hold it to
