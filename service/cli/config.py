"""`npt config`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="What the service is told, and by whom.", no_args_is_help=True)


@app.command()
def show(
    config: Annotated[Path | None, typer.Option(help="A TOML file of settings.  [NPT_CONFIG]")] = None,
) -> None:
    """Every setting with its value and where it comes from: environment, file or default."""
    from service.cli.serving import read_settings, use_config
    from service.settings import shown, unknown_variables

    use_config(config)
    rows = list(shown(read_settings()))
    width = max(len(row.name) for row in rows)
    for row in rows:
        value = "-" if row.value is None else row.value
        typer.echo(f"{row.name:<{width}}  {value}  ({row.source})")
    for line in unknown_variables():
        typer.echo(f"npt: {line}", err=True)
