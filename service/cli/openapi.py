"""`npt openapi`."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    output: Annotated[Path | None, typer.Option(help="Write this file instead of standard output.")] = None,
) -> None:
    """Print the OpenAPI document of the service."""
    from service.openapi import render

    if output is None:
        typer.echo(render(), nl=False)
    else:
        output.write_text(render(), encoding="utf-8")
