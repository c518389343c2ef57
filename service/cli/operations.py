"""`npt operations`."""

from typing import Annotated
from urllib.parse import quote

import typer

from service.cli.options import DEFAULT_URL, Cursor, Json, Limit, Url, ask, operation_line, show, show_page

app = typer.Typer(help="Writes that were not waited for.", no_args_is_help=True)


@app.command("list")
def list_operations(
    state: Annotated[
        str | None, typer.Option(help="pending, running, succeeded, failed or cancelled.")
    ] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List operations, oldest first."""
    query = {"limit": limit, "cursor": cursor, "state": state}
    page = ask(url, lambda client: client.call("GET", "/operations", query=query))
    show_page(page, as_json, operation_line)


@app.command()
def get(operation_id: str, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Show one operation."""
    operation = ask(url, lambda client: client.call("GET", _path(operation_id)))
    show(operation, as_json, operation_line(operation))


@app.command()
def cancel(operation_id: str, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """End an operation whose version is not stored yet."""
    operation = ask(url, lambda client: client.call("DELETE", _path(operation_id)))
    show(operation, as_json, operation_line(operation))


def _path(operation_id: str) -> str:
    return f"/operations/{quote(operation_id, safe='')}"
