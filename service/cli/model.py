"""`npt model`: checkpoints that lie elsewhere."""

import time
from pathlib import Path
from typing import Annotated

import typer

from service.cli.failing import told_in_one_line

app = typer.Typer(help="Fetch checkpoints, and describe them for that.", no_args_is_help=True)


@app.command()
def fetch(
    url: Annotated[str, typer.Argument(help="s3://, gs://, az://, https:// or file:// of its folder.")],
    folder: Annotated[Path, typer.Argument(help="Where it goes.")],
    manifest_sha256: Annotated[str, typer.Option(help="SHA-256 that the manifest must have.")] = "",
) -> None:
    """Bring a checkpoint here, each file checked by the hash in its manifest. Once more goes on where it
    stopped, and transfers nothing that is there.
    """
    from service.model_files import ModelFilesError
    from service.model_files import fetch as fetch_files

    started = time.perf_counter()
    with told_in_one_line(ModelFilesError, OSError):
        done = fetch_files(url.rstrip("/"), folder, manifest_sha256 or None)
    seconds = time.perf_counter() - started
    typer.echo(
        f"{folder}: {done.files} files of {done.size} bytes, {done.transferred} fetched, {seconds:.1f} s"
    )


@app.command()
def manifest(folder: Annotated[Path, typer.Argument(help="The checkpoint.", exists=True)]) -> None:
    """Write a checkpoint's manifest.json beside it, and print the SHA-256 of that, which stands for all."""
    from service.model_files import write_manifest

    with told_in_one_line(OSError):
        typer.echo(write_manifest(folder))
