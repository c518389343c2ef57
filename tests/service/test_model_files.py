"""Checkpoints fetched from a folder, from S3 and from a web server that breaks off."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service import model_files
from service.cli import app
from service.model_files import (
    FileDamaged,
    FolderTaken,
    ManifestInvalid,
    SourceUnavailable,
    fetch,
    write_manifest,
)
from service.object_stores import SharedCredentials
from tests.service.s3 import REGION, bucket_client, moto_server

PIECE = 64


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "PIECE", PIECE)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "parts").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "empty").write_bytes(b"")
    (folder / "parts" / "weights.safetensors").write_bytes(bytes(range(256)) * 4)
    write_manifest(folder)
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != model_files.LOCK
    }


def test_everything_arrives_and_nothing_is_fetched_twice(source: Path, target: Path) -> None:
    done = fetch(source.as_uri(), target)
    assert (done.files, done.size, done.transferred) == (3, 1026, 1026)
    assert contents(target) == contents(source)
    assert fetch(source.as_uri(), target).transferred == 0


def test_file_that_was_spoilt_is_fetched_again(source: Path, target: Path) -> None:
    fetch(source.as_uri(), target)
    (target / "config.json").write_text("[]")
    assert fetch(source.as_uri(), target).transferred == 2
    assert contents(target) == contents(source)


@pytest.mark.parametrize("content", [b"x" * 1024, b"short", b""])
def test_file_with_another_hash_is_refused_and_not_kept(source: Path, target: Path, content: bytes) -> None:
    (source / "parts" / "weights.safetensors").write_bytes(content)
    with pytest.raises((FileDamaged, SourceUnavailable)):
        fetch(source.as_uri(), target)
    assert not (target / "parts" / "weights.safetensors").exists()
    assert not (target / "manifest.json").exists()


def test_missing_file_is_refused(source: Path, target: Path) -> None:
    (source / "config.json").unlink()
    with pytest.raises(FileDamaged, match=r"config\.json is missing"):
        fetch(source.as_uri(), target)


def test_manifest_must_be_the_one_that_was_asked_for(source: Path, target: Path) -> None:
    said = hashlib.sha256((source / "manifest.json").read_bytes()).hexdigest()
    assert fetch(source.as_uri(), target, said).files == 3
    with pytest.raises(ManifestInvalid, match="is not the one"):
        fetch(source.as_uri(), target, "0" * 64)


@pytest.mark.parametrize(
    "entry",
    [
        {"path": "../outside"},
        {"path": "/etc/passwd"},
        {"path": ".hidden"},
        {"path": "a/../b"},
        {"path": "manifest.json"},
        {"size": -1},
        {"size": "9"},
        {"sha256": "00"},
    ],
)
def test_senseless_manifest_is_refused(source: Path, target: Path, entry: dict[str, Any]) -> None:
    whole = {"path": "a", "size": 0, "sha256": "0" * 64} | entry
    (source / "manifest.json").write_text(json.dumps({"files": [whole]}))
    with pytest.raises(ManifestInvalid):
        fetch(source.as_uri(), target)
    assert not target.exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": []}', '{"files": [1]}', "\x00"])
def test_manifest_that_is_none_is_refused(source: Path, target: Path, text: str) -> None:
    (source / "manifest.json").write_text(text)
    with pytest.raises(ManifestInvalid):
        fetch(source.as_uri(), target)


def test_folder_of_something_else_is_left_alone(source: Path, target: Path) -> None:
    target.mkdir()
    (target / "model-00001.safetensors").write_text("older")
    with pytest.raises(FolderTaken, match="model-00001"):
        fetch(source.as_uri(), target)


def test_s3_is_fetched_from_with_credentials_of_a_file(
    source: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = tmp_path / "credentials"
    secrets.write_text("[default]\naws_access_key_id = file\naws_secret_access_key = f%le\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(secrets))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    with moto_server() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_REGION", REGION)
        client = bucket_client(url)
        client.create_bucket(Bucket="models")
        for name, data in contents(source).items():
            client.put_object(Bucket="models", Key=f"tiny/{name}", Body=data)
        assert fetch("s3://models/tiny", target).transferred == 1026
    assert contents(target) == contents(source)


def test_credentials_follow_their_file(tmp_path: Path) -> None:
    path = tmp_path / "credentials"
    read = SharedCredentials(path)
    path.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b%c\n")
    first = read()
    assert (first["access_key_id"], first["secret_access_key"], first["token"]) == ("a", "b%c", None)
    path.write_text("[default]\naws_access_key_id=d\naws_secret_access_key=e\naws_session_token=f\n")
    second = read()
    assert (second["access_key_id"], second["secret_access_key"], second["token"]) == ("d", "e", "f")
    assert second["expires_at"] is not None


class BreaksOff(BaseHTTPRequestHandler):
    """Serves ranges of a folder, and after so many answers fails."""

    folder: Path
    left: int

    def do_GET(self) -> None:
        if type(self).left <= 0:
            self.send_error(403)
            return
        type(self).left -= 1
        data = (self.folder / self.path.lstrip("/")).read_bytes()
        asked = self.headers.get("Range")
        if asked is None:
            self._send(200, data)
            return
        first, last = map(int, asked.removeprefix("bytes=").split("-"))
        last = min(last, len(data) - 1)
        part = data[first : last + 1]
        self._send(206, part, ("Content-Range", f"bytes {first}-{last}/{len(data)}"))

    def _send(self, status: int, data: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (("Content-Length", str(len(data))), *headers):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def web(source: Path) -> Iterator[str]:
    BreaksOff.folder = source
    server = ThreadingHTTPServer(("127.0.0.1", 0), BreaksOff)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_transfer_that_was_cut_off_goes_on_where_it_stopped(
    web: str, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "FILES_AT_ONCE", 1)
    BreaksOff.left = 1 + 1 + 5  # the manifest, config.json, five pieces of the weights
    with pytest.raises(SourceUnavailable, match="out of reach"):
        fetch(web, target)
    assert (target / "config.json").exists()
    assert not (target / "manifest.json").exists()
    BreaksOff.left = 100
    assert fetch(web, target).transferred == 1024 - 5 * PIECE
    assert contents(target) == contents(source)


def test_commands_say_what_they_did(source: Path, target: Path) -> None:
    made = CliRunner().invoke(app, ["model", "manifest", str(source)])
    sha256 = made.stdout.strip()
    done = CliRunner().invoke(
        app, ["model", "fetch", source.as_uri(), str(target), "--manifest-sha256", sha256]
    )
    assert f"{target}: 3 files of 1026 bytes, 1026 fetched" in done.stdout
    (source / "manifest.json").unlink()
    refused = CliRunner().invoke(app, ["model", "fetch", source.as_uri(), str(target)])
    assert refused.exit_code == 1
    assert refused.stderr == f"npt: {source.as_uri()} has no manifest.json: `npt model manifest` writes one\n"
