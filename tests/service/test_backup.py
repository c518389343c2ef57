"""What docs/operations.md says of backups, done: a copied folder, and a dump beside copied blobs."""

import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from service.host import Host, open_host
from service.settings import Settings
from tests.service.conftest import OpenHost
from tests.service.fakes import load_fake_runtime
from tests.service.postgres import PostgresServer
from tests.service.test_ledger_tools import known, npt, teach

SENTENCES = [f"The {letter * 3} is Town {letter}." for letter in "ABCDEFGH"]


def test_copied_folder_of_a_stopped_server_serves_the_same(
    host_of: OpenHost, data: Path, tmp_path: Path
) -> None:
    host = host_of()
    for sentence in SENTENCES:
        teach(host, sentence)
    before = host.version, host.replica.chain, known(host)
    host.close()
    shutil.copytree(data, tmp_path / "copy")
    again = open_host(Settings(data=tmp_path / "copy"), load_fake_runtime)
    try:
        assert (again.version, again.replica.chain, known(again)) == before
    finally:
        again.close()


def postgres_program(server: PostgresServer, name: str, *arguments: str) -> bytes:
    account = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*account, str(server.programs / name), *arguments],
        capture_output=True,
        check=False,
        cwd=server.folder,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def shared(data: Path, url: str) -> Host:
    return open_host(Settings(data=data, database_url=url), load_fake_runtime)


def test_dump_and_then_the_blobs_are_a_sound_backup_beside_writers(
    postgres: PostgresServer, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, copy = postgres.new_database(), postgres.new_database()
    host = shared(data, url)
    teach(host, SENTENCES[0])
    acknowledged, stop = host.version, threading.Event()

    def write() -> None:
        for number in range(1000):
            if stop.is_set():
                return
            teach(host, f"The {number:03} is Value{number}.")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        name = url.split("/")[3].split("?")[0]
        dump = postgres_program(postgres, "pg_dump", "-h", str(postgres.folder), name)
        shutil.copytree(data / "blobs", tmp_path / "copy" / "blobs")
    finally:
        stop.set()
        writer.join()
    file = postgres.folder / "dump.sql"
    file.write_bytes(dump)
    file.chmod(0o644)
    target = copy.split("/")[3].split("?")[0]
    quiet = ("-q", "-v", "ON_ERROR_STOP=1", "-f", str(file))
    postgres_program(postgres, "psql", "-h", str(postgres.folder), *quiet, target)
    monkeypatch.setenv("NPT_DATABASE_URL", copy)
    assert npt("verify", "--data", tmp_path / "copy").exit_code == 0
    again = shared(tmp_path / "copy", copy)
    try:
        assert acknowledged <= again.version <= host.version
        told = host.ledger.version(again.version)
        assert told is not None
        assert told.chain == again.replica.chain
        assert SENTENCES[0] in known(again)
    finally:
        again.close()
        host.close()
