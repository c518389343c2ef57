"""`npt versions`."""

from typing import Any

import typer

from service.cli.options import (
    DEFAULT_URL,
    Cursor,
    IfMatch,
    Json,
    Limit,
    Url,
    ask,
    etag,
    show,
    show_page,
)

app = typer.Typer(help="List versions, and roll back.", no_args_is_help=True)


@app.command("list")
def list_versions(
    limit: Limit = 100, cursor: Cursor = None, as_json: Json = False, url: Url = DEFAULT_URL
) -> None:
    """List versions, oldest first."""
    query = {"limit": limit, "cursor": cursor}
    page = ask(url, lambda client: client.call("GET", "/versions", query=query))
    show_page(page, as_json, _line)


@app.command()
def activate(version: int, if_match: IfMatch = None, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Make a new version that knows exactly what VERSION knows."""
    headers = {"If-Match": etag(if_match)}
    path = f"/versions/{version}/activate"
    made = ask(url, lambda client: client.call("POST", path, headers=headers))
    show(made, as_json, _line(made))


def _line(version: dict[str, Any]) -> str:
    parts = [str(version["version"]), version["kind"], version["created_at"]]
    if version["target"] is not None:
        parts.append(f"to {version['target']}")
    parts += [f"+{fact}" for fact in version["births"]] + [f"-{f}" for f in version["deaths"]]
    return "  ".join(parts)
