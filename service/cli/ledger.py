"""`npt ledger`: what is kept, without a model and without a server."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.failing import told_in_one_line

if TYPE_CHECKING:
    from service.blobs import Blobs
    from service.ledger import Ledger

app = typer.Typer(help="Verify, back up and tidy what is stored.", no_args_is_help=True)

Data = Annotated[Path | None, typer.Option(help="Folder of ledger and blobs.  [data]")]
File = Annotated[Path, typer.Argument(help="The archive, a tar file.")]


@app.command()
def migrate(data: Data = None) -> None:
    """Make the tables, or bring them up to date. A server does so itself when it starts; a rollout of many
    has it done before.
    """
    with opened(data) as ledger:
        typer.echo(f"{ledger.name}: the schema is up to date")


@app.command()
def verify(data: Data = None) -> None:
    """Read everything: hash chains of versions and audit, checksums of other rows, and every blob that is
    needed. Tells the newest version and its chain hash, by which replicas are compared. Works beside a
    running server.
    """
    with _opened(data) as (ledger, blobs):
        names = sorted(ledger.blobs())
        for name in names:
            blobs.get(name)
        last = ledger.version(ledger.newest)
        count = 0 if last is None else last.version + 1
        typer.echo(f"{ledger.name}: {count} versions and {len(names)} blobs are sound")
        if last is not None:
            typer.echo(f"newest version {last.version}, chain {last.chain}")


@app.command("export")
def export_archive(file: File, data: Data = None) -> None:
    """Write history and weights into one file. Works beside a running server."""
    from service.archive import write_archive

    with _opened(data) as (ledger, blobs):
        made = write_archive(ledger, blobs, file)
        typer.echo(f"{file}: {made.facts} facts, newest version {made.newest}, chain {made.chain}")


@app.command("import")
def import_archive(file: File, data: Data = None) -> None:
    """Put an archive into an empty ledger."""
    from service.archive import read_archive

    with _opened(data, alone=True) as (ledger, blobs):
        made = read_archive(ledger, blobs, file)
        typer.echo(f"{ledger.name}: {made.facts} facts, newest version {made.newest}, chain {made.chain}")


@app.command()
def gc(
    data: Data = None,
    grace_minutes: Annotated[
        int, typer.Option(min=0, help="Younger blobs are left alone: their fact may be under way.")
    ] = 60,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Name them, delete nothing.")] = False,
) -> None:
    """Delete blobs that nothing needs."""
    from service.garbage import collect

    with _opened(data) as (ledger, blobs):
        done = collect(ledger, blobs, timedelta(minutes=grace_minutes), dry_run=dry_run)
        for name in done.deleted:
            typer.echo(name)
        told = "would be deleted" if dry_run else "deleted"
        typer.echo(f"{len(done.deleted)} of {done.found} blobs {told}", err=True)


@app.command()
def reseal(data: Data = None) -> None:
    """Store every blob that is needed again, with the first of NPT_BLOB_KEYS; without keys, in the clear.
    Works beside a running server that knows the old key and the new one.
    """
    with _opened(data) as (ledger, blobs):
        names = sorted(ledger.blobs())
        for name in names:
            blobs.put(blobs.get(name))
        typer.echo(f"stored again: {len(names)} blobs")


@app.command("compact")
def compact_versions(
    data: Data = None,
    keep: Annotated[int, typer.Option(min=0, help="Versions before the newest that stay.")] = 1000,
) -> None:
    """Make a snapshot, from which the next start begins: older versions are gone then, and `gc` deletes
    the blobs that they alone needed.
    """
    from service.compaction import NothingToCompact, compact

    with _opened(data) as (ledger, blobs), told_in_one_line(NothingToCompact):
        typer.echo(f"snapshot of version {compact(ledger, blobs, keep)}")


@contextmanager
def opened(data: Path | None, alone: bool = False) -> Iterator["Ledger"]:
    """The ledger of the settings; with `alone` the folder is locked against a server."""
    from service.archive import ArchiveError
    from service.blobs import BlobError
    from service.cli.serving import read_settings
    from service.ledger import FolderLock, LedgerError
    from service.storage import StorageError, make_private_folder
    from service.stores import open_ledger

    settings = read_settings(data=data)
    refused = (ArchiveError, BlobError, LedgerError, StorageError, OSError)
    with told_in_one_line(*refused):
        make_private_folder(settings.data)
        lock = FolderLock(settings.data) if alone else None
        ledger = open_ledger(settings)
        try:
            yield ledger
        finally:
            ledger.close()
            if lock is not None:
                lock.release()


@contextmanager
def _opened(data: Path | None, alone: bool = False) -> Iterator[tuple["Ledger", "Blobs"]]:
    from service.cli.serving import read_settings
    from service.stores import open_blobs

    with opened(data, alone) as ledger:
        yield ledger, open_blobs(read_settings(data=data))
