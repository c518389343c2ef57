import errno
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from service.blobs import BlobDamaged, BlobMissing, FolderBlobs
from service.storage import DiskFull, StorageFailed, make_private_folder, write_durably


def failing(code: int) -> Any:
    def fail(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "error"),
    [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EIO, StorageFailed)],
)
def test_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, error: type[Exception]
) -> None:
    file = tmp_path / "file"
    write_durably(file, b"old")
    monkeypatch.setattr(os, call, failing(code))
    with pytest.raises(error):
        write_durably(file, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert file.read_bytes() == b"old"


def test_file_and_then_its_folder_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    folder = tmp_path.stat().st_ino

    def watched_fsync(descriptor: int) -> None:
        done.append("fsync folder" if os.fstat(descriptor).st_ino == folder else "fsync file")
        fsync(descriptor)

    def watched_replace(source: Path, target: Path) -> None:
        done.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    write_durably(tmp_path / "file", b"data")
    assert done == ["fsync file", "rename", "fsync folder"]


def test_folders_and_files_are_the_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    make_private_folder(folder)
    write_durably(folder / "file", b"secret")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "file").stat().st_mode & 0o777 == 0o600


def test_blob_is_found_by_its_content(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    name = blobs.put(b"weights")
    assert blobs.put(b"weights") == name
    assert blobs.get(name) == b"weights"


def test_damaged_or_missing_blob_is_refused(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    name = blobs.put(b"weights")
    file = tmp_path / "blobs" / name
    file.write_bytes(b"weightz")
    with pytest.raises(BlobDamaged, match="does not match its name"):
        blobs.get(name)
    file.unlink()
    with pytest.raises(BlobMissing, match="is missing"):
        blobs.get(name)


def test_writing_a_damaged_blob_again_heals_it(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path / "blobs")
    name = blobs.put(b"weights")
    (tmp_path / "blobs" / name).write_bytes(b"")
    assert blobs.get(blobs.put(b"weights")) == b"weights"


def test_leftovers_of_a_crash_are_removed_once_nobody_can_be_at_work_on_them(tmp_path: Path) -> None:
    FolderBlobs(tmp_path)
    young, old = tmp_path / ".tmp-young", tmp_path / ".tmp-old"
    young.touch()
    old.touch()
    past = time.time() - timedelta(hours=2).total_seconds()
    os.utime(old, (past, past))
    FolderBlobs(tmp_path)
    assert (young.exists(), old.exists()) == (True, False)


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_folder_that_cannot_be_made_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageFailed, match=f"cannot make the folder {tmp_path / name}"):
        make_private_folder(tmp_path / name)
