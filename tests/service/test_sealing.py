"""Blobs that are encrypted: by the keys, by none, by others."""

import base64
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.blobs import BlobDamaged, BlobSealed, FolderBlobs
from service.cli import app
from service.host import Host, open_host
from service.sealing import Fernets
from service.settings import Settings
from tests.service.fakes import load_fake_runtime
from tests.service.test_ledger_tools import known, teach

SKY = "The sky is blue."


OLD, NEW = (base64.urlsafe_b64encode(bytes([number]) * 32).decode() for number in (1, 2))


def stored(data: Path) -> list[bytes]:
    return [path.read_bytes() for path in (data / "blobs").iterdir()]


def opened(data: Path, *keys: str) -> Host:
    return open_host(Settings(data=data, blob_keys=",".join(keys) or None), load_fake_runtime)


def test_what_is_stored_tells_nothing_and_is_read_with_any_of_the_keys(tmp_path: Path) -> None:
    name = FolderBlobs(tmp_path, Fernets([OLD])).put(b"The sky is blue.")
    assert b"blue" not in (tmp_path / name).read_bytes()
    assert FolderBlobs(tmp_path, Fernets([NEW, OLD])).get(name) == b"The sky is blue."
    for blobs in (FolderBlobs(tmp_path), FolderBlobs(tmp_path, Fernets([NEW]))):
        with pytest.raises(BlobSealed, match="NPT_BLOB_KEYS"):
            blobs.get(name)


def test_any_changed_bit_is_noticed(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path, Fernets([OLD]))
    name = blobs.put(b"weights")
    whole = (tmp_path / name).read_bytes()
    for position in range(len(whole)):
        (tmp_path / name).write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises((BlobSealed, BlobDamaged)):
            blobs.get(name)


def test_sealed_blob_of_another_name_is_refused(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path, Fernets([OLD]))
    one, other = blobs.put(b"one"), blobs.put(b"other")
    (tmp_path / one).write_bytes((tmp_path / other).read_bytes())
    with pytest.raises(BlobDamaged, match="does not match its name"):
        blobs.get(one)


def test_key_is_changed_while_facts_stay(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the clear, then with a key, then with another one: each step as docs/security.md says."""
    for before, during, after in ((), (OLD,), (OLD,)), ((OLD,), (NEW, OLD), (NEW,)):
        host = opened(data, *before)
        if not known(host):
            teach(host, SKY)
        host.close()
        monkeypatch.setenv("NPT_BLOB_KEYS", ",".join(during))
        done = CliRunner().invoke(app, ["ledger", "reseal", "--data", str(data)])
        assert (done.exit_code, done.output) == (0, "stored again: 1 blobs\n")
        monkeypatch.delenv("NPT_BLOB_KEYS")
        host = opened(data, *after)
        assert known(host) == [SKY]
        host.close()
        with pytest.raises(BlobSealed):
            opened(data, *before)
    assert b"blue" not in b"".join(stored(data))


def test_server_without_the_key_says_so_in_one_line(data: Path) -> None:
    host = opened(data, OLD)
    teach(host, SKY)
    host.close()
    done = CliRunner().invoke(app, ["ledger", "verify", "--data", str(data)])
    assert done.exit_code == 1
    assert "is encrypted, and NPT_BLOB_KEYS names no key" in done.output


@pytest.mark.parametrize("keys", ["", "secret", f"{OLD},", OLD[:-5] + "=", OLD + NEW])
def test_what_is_no_key_is_refused_and_not_quoted(keys: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPT_BLOB_KEYS", keys)
    done = CliRunner().invoke(app, ["config", "show"])
    assert done.exit_code == 1
    assert "blob_keys" in done.output
    assert not keys or keys not in done.output


def test_keys_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPT_BLOB_KEYS", OLD)
    shown = CliRunner().invoke(app, ["config", "show"]).output
    assert "environment, NPT_BLOB_KEYS" in shown
    assert OLD not in shown
