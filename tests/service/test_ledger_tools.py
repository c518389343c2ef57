"""What `npt ledger` does: verify, export and import, collect garbage, compact."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from npt_core.engine import VersionGone
from service.blobs import FolderBlobs
from service.cli import app
from service.commands import OnConflict
from service.fact_requests import add_command
from service.garbage import collect
from service.host import Host
from service.ledger import ANONYMOUS, Ledger, sqlite_url
from service.schemas.facts import FactIn
from service.storage import DiskFull
from tests.service.conftest import OpenHost, client_of, fake
from tests.service.postgres import PostgresServer

SENTENCES = ["The sky is blue.", "The sea is green.", "The sun is hot."]


def npt(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["ledger", *map(str, arguments)])


def teach(host: Host, sentence: str) -> str:
    asked = FactIn(fact=sentence, on_conflict=OnConflict.ALLOW)
    return host.writer.add(add_command([asked], 2, ANONYMOUS, sentence[4:7])).facts[0].id


@pytest.fixture
def taught(host_of: OpenHost) -> Host:
    """Version 3 knows three facts, 4 has lost one, 5 has it again, 6 has lost another."""
    host = host_of()
    ids = [teach(host, sentence) for sentence in SENTENCES]
    host.writer.retract(ids[0])
    host.writer.activate(3)
    host.writer.retract(ids[1])
    return host


def known(host: Host) -> list[str]:
    return sorted(fake(host).bank.sentences(host.version))


def rewritten(archive: Path, change: Callable[[str, bytes], bytes]) -> None:
    """The archive with other content in its files."""
    with tarfile.open(archive) as opened:
        members = {member.name: opened.extractfile(member) for member in opened}
        contents = {name: file.read() for name, file in members.items() if file is not None}
    with tarfile.open(archive, "w") as made:
        for name, content in contents.items():
            data = change(name, content)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))


def test_sound_ledger_is_verified_beside_its_server(taught: Host, data: Path) -> None:
    done = npt("verify", "--data", data)
    assert (done.exit_code, done.stdout.splitlines()) == (
        0,
        [
            f"{data / 'ledger.db'}: 7 versions and 3 blobs are sound",
            f"newest version 6, chain {taught.replica.chain}",
        ],
    )


def test_damaged_blob_is_found_in_one_line(taught: Host, data: Path) -> None:
    blob = next(iter((data / "blobs").iterdir()))
    blob.write_bytes(b"x" + blob.read_bytes()[1:])
    done = npt("verify", "--data", data)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"npt: blob {blob} is damaged")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_archive_brings_back_everything(
    taught: Host,
    host_of: OpenHost,
    data: Path,
    tmp_path: Path,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    expected = (known(taught), taught.ledger.versions(), taught.ledger.facts(), taught.ledger.audit())
    archive, elsewhere = tmp_path / "backup.tar", tmp_path / "elsewhere"
    assert npt("export", archive, "--data", data).exit_code == 0
    if database == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        monkeypatch.setenv("NPT_DATABASE_URL", server.new_database())
    done = npt("import", archive, "--data", elsewhere)
    assert done.exit_code == 0, done.stderr
    data.rename(tmp_path / "lost")
    elsewhere.rename(data)
    again = host_of()
    assert (known(again), again.ledger.versions(), again.ledger.facts(), again.ledger.audit()) == expected
    assert again.writer.add(add_command([FactIn(fact=SENTENCES[0], on_conflict=OnConflict.ALLOW)], 2,
                                        ANONYMOUS, "sky")).replayed  # fmt: skip
    assert (archive.stat().st_mode & 0o077) == 0


@pytest.mark.parametrize("damage", ["cut", "blob", "row", "key", "column", "noise", "format"])
def test_damaged_archive_changes_nothing(taught: Host, data: Path, tmp_path: Path, damage: str) -> None:
    archive, elsewhere = tmp_path / "backup.tar", tmp_path / "elsewhere"
    npt("export", archive, "--data", data)
    content = archive.read_bytes()
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "noise":
        content = os.urandom(len(content))
    else:
        sought = {
            "blob": b"fact_",
            "row": b"The sky",
            "key": b'"digest": "1',
            "column": b'"digest',
            "format": b'{"format": 2',
        }[damage]
        if damage == "blob":
            with tarfile.open(archive) as opened:
                at = next(m for m in opened if m.name.startswith("blobs/")).offset_data + 20
        else:
            at = content.index(sought) + len(sought) - 1
        content = content[:at] + b"7" + content[at + 1 :]
    archive.write_bytes(content)
    done = npt("import", archive, "--data", elsewhere)
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert npt("verify", "--data", elsewhere).stdout.endswith("0 versions and 0 blobs are sound\n")


def without_checksums(name: str, content: bytes) -> bytes:
    """As the first release wrote it."""
    if name == "manifest.json":
        return content.replace(b'"format": 2', b'"format": 1')
    if not name.startswith("rows/"):
        return content
    rows = [json.loads(line) for line in content.splitlines()]
    kept = [{column: value for column, value in row.items() if column != "checksum"} for row in rows]
    return "".join(json.dumps(row) + "\n" for row in kept).encode()


def test_archive_of_before_checksums_is_taken(taught: Host, data: Path, tmp_path: Path) -> None:
    archive, elsewhere = tmp_path / "backup.tar", tmp_path / "elsewhere"
    npt("compact", "--keep", "0", "--data", data)
    npt("export", archive, "--data", data)
    rewritten(archive, without_checksums)
    done = npt("import", archive, "--data", elsewhere)
    assert done.exit_code == 0, done.stderr
    assert npt("verify", "--data", elsewhere).exit_code == 0
    expected = [taught.ledger.find_key(ANONYMOUS, key) for key in ("sky", "sea", "sun")]
    with closing(Ledger(sqlite_url(elsewhere / "ledger.db"))) as again:
        assert [again.find_key(ANONYMOUS, key) for key in ("sky", "sea", "sun")] == expected
        assert again.snapshot() == taught.ledger.snapshot()


def test_archive_of_before_whose_rows_lack_a_column_is_refused(
    taught: Host, data: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "backup.tar"
    npt("export", archive, "--data", data)
    rewritten(archive, lambda name, content: without_checksums(name, content).replace(b"digest", b"digesu"))
    done = npt("import", archive, "--data", tmp_path / "elsewhere")
    assert (done.exit_code, done.stderr) == (1, f"npt: {archive}: a row lacks column 'digest'\n")


def test_archive_is_not_put_into_a_ledger_with_history(taught: Host, data: Path, tmp_path: Path) -> None:
    archive = tmp_path / "backup.tar"
    npt("export", archive, "--data", data)
    taught.close()
    done = npt("import", archive, "--data", data)
    assert (done.exit_code, "is not empty" in done.stderr) == (1, True)


def test_orphans_are_collected_once_they_are_old(taught: Host, data: Path) -> None:
    orphan = taught.writer._blobs.put(b"left by a write that was never committed")
    assert npt("gc", "--data", data).stdout == ""
    old = time.time() - timedelta(hours=2).total_seconds()
    for blob in (data / "blobs").iterdir():
        os.utime(blob, (old, old))
    assert npt("gc", "--dry-run", "--data", data).stdout == f"{orphan}\n"
    assert (data / "blobs" / orphan).exists()
    assert npt("gc", "--data", data).stdout == f"{orphan}\n"
    assert not (data / "blobs" / orphan).exists()
    assert npt("verify", "--data", data).exit_code == 0


async def test_start_from_a_snapshot_knows_the_same_and_older_versions_are_gone(
    taught: Host, host_of: OpenHost, data: Path
) -> None:
    expected, chain = known(taught), taught.replica.chain
    done = npt("compact", "--keep", "1", "--data", data)
    assert (done.exit_code, done.stdout) == (0, "snapshot of version 5\n")
    assert npt("compact", "--keep", "1", "--data", data).exit_code == 1
    old = (datetime.now(UTC) - timedelta(hours=2)).timestamp()
    for blob in (data / "blobs").iterdir():
        os.utime(blob, (old, old))
    again = host_of()
    assert (known(again), again.replica.chain) == (expected, chain)
    assert again.runtime.bank.oldest == 5
    # Of version 6 every fact is in the snapshot, but one that it knows may be retracted and come back.
    npt("gc", "--data", data)
    again = host_of()
    again.writer.activate(5)
    assert known(again) == sorted(SENTENCES)
    with pytest.raises(VersionGone):
        again.writer.activate(3)
    async with client_of(again) as client:
        assert (await client.post("/versions/3/activate")).status_code == 410
        asked = {"prompt": "What is the sky?", "weights_version": 3}
        assert (await client.post("/generate", json=asked)).status_code == 410


def test_nothing_to_compact_is_told(taught: Host, data: Path) -> None:
    done = npt("compact", "--data", data)
    assert (done.exit_code, "newest version is 6" in done.stderr) == (1, True)


@pytest.mark.parametrize("part", ["base", "chain", "newest", "blob"])
def test_archive_that_is_not_what_its_manifest_says_changes_nothing(
    taught: Host, data: Path, tmp_path: Path, part: str
) -> None:
    archive, forged, elsewhere = tmp_path / "backup.tar", tmp_path / "forged.tar", tmp_path / "elsewhere"
    npt("export", archive, "--data", data)
    with tarfile.open(archive) as sound, tarfile.open(forged, "w") as made:
        for member in sound:
            content = sound.extractfile(member)
            assert content is not None
            name, bytes_ = _forged(part, member.name, content.read())
            entry = tarfile.TarInfo(name)
            entry.size = len(bytes_)
            made.addfile(entry, io.BytesIO(bytes_))
            part = "" if part == "blob" and member.name.startswith("blobs/") else part
    done = npt("import", forged, "--data", elsewhere)
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "archive" in done.stderr or "manifest" in done.stderr
    assert npt("verify", "--data", elsewhere).stdout.endswith("0 versions and 0 blobs are sound\n")


def _forged(part: str, name: str, content: bytes) -> tuple[str, bytes]:
    if name == "manifest.json" and part in ("base", "chain", "newest"):
        manifest = json.loads(content)
        manifest[part] = 3 if part == "newest" else "0" * 64
        return name, json.dumps(manifest).encode()
    if name.startswith("blobs/") and part == "blob":  # a sound one that no fact has
        return f"blobs/{hashlib.sha256(b'another').hexdigest()}", b"another"
    return name, content


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_blob_that_a_write_needs_again_while_it_is_collected_is_there(
    host_of: OpenHost, data: Path, database: str, monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    if database == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        monkeypatch.setenv("NPT_DATABASE_URL", server.new_database())
    host = host_of()
    # The same bytes as of the fact that is written below, left by an attempt that failed.
    orphan = _orphan_of(host, SENTENCES[0])
    put, listed, stored = FolderBlobs.put, threading.Event(), threading.Event()
    past = time.time() - timedelta(hours=2).total_seconds()
    os.utime(data / "blobs" / orphan, (past, past))
    real = host.ledger.blobs

    def blobs() -> set[str]:
        needed = real()
        listed.set()
        assert stored.wait(60)
        return needed

    def put_and_wait(self: FolderBlobs, content: bytes) -> str:
        name = put(self, content)
        if not stored.is_set():
            assert listed.wait(60)
            stored.set()
            collector.join(60)  # it deletes the blob before the fact is committed
            assert not (data / "blobs" / orphan).exists()
        return name

    monkeypatch.setattr(host.ledger, "blobs", blobs)
    monkeypatch.setattr(FolderBlobs, "put", put_and_wait)
    collector = threading.Thread(target=collect, args=(host.ledger, host.blobs))
    collector.start()
    fact = teach(host, SENTENCES[0])
    written = host.ledger.fact(fact)
    assert written is not None
    assert written.fact.blob == orphan
    assert host.blobs.get(orphan)


def _orphan_of(host: Host, sentence: str) -> str:
    """The blob of a fact whose commit fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "commit", lambda *_: (_ for _ in ()).throw(DiskFull("no room")))
        with pytest.raises(DiskFull):
            teach(host, sentence)
    (orphan,) = (blob.name for blob in host.blobs)
    return orphan


def test_migration_makes_the_tables_once(data: Path) -> None:
    for _ in range(2):
        done = npt("migrate", "--data", data)
        assert (done.exit_code, done.stdout) == (0, f"{data / 'ledger.db'}: the schema is up to date\n")


def test_what_needs_no_model_loads_no_torch(data: Path) -> None:
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from service.cli import app\n"
        "for command in ('ledger migrate', 'ledger gc', 'keys list', 'config show'):\n"
        f"    done = CliRunner(env={{'NPT_DATA': {str(data)!r}}}).invoke(app, command.split())\n"
        "    assert done.exit_code == 0\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
