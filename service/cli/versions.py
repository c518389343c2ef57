"""`npt versions`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.client import Client
from service.cli.failing import told_in_one_line
from service.cli.options import (
    DEFAULT_URL,
    Cursor,
    DryRun,
    IdempotencyKey,
    IfMatch,
    Json,
    Later,
    Limit,
    Url,
    ask,
    etag,
    operation_line,
    show,
    show_page,
    write_headers,
)

app = typer.Typer(help="List, compare, export, fold and roll back versions.", no_args_is_help=True)


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


@app.command()
def diff(before: int, after: int, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """What version AFTER knows that BEFORE does not, and the other way round."""
    found = ask(url, lambda client: client.call("GET", f"/versions/{before}/diff/{after}"))
    lines = [f"+{fact}" for fact in found["born"]["facts"]] + [f"-{fact}" for fact in found["died"]["facts"]]
    lines += [f"folded {fact}" for fact in found["folded"]]
    lines += [f"unfolded {fact}" for fact in found["unfolded"]]
    lines += [
        f"{sign}{side['columns']} columns, {side['bytes']} bytes, layers {side['layers']}"
        for sign, side in (("+", found["born"]), ("-", found["died"]))
        if side["facts"]
    ]
    show(found, as_json, *lines)


@app.command()
def fold(
    facts: Annotated[
        list[str] | None, typer.Argument(help="Ids; without any, every fact that has columns.")
    ] = None,
    min_recall: Annotated[float | None, typer.Option(help="Of folded facts and of others.  [0.99]")] = None,
    min_locality: Annotated[float | None, typer.Option(help="Of unrelated answers.  [0.95]")] = None,
    max_drift: Annotated[float | None, typer.Option(help="Predicted, of ordinary outputs.  [0.03]")] = None,
    dry_run: DryRun = False,
    idempotency_key: IdempotencyKey = None,
    if_match: IfMatch = None,
    later: Later = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Fold facts into the base weights, where they take neither memory nor time."""
    optional = {
        "facts": facts or None,
        "min_recall": min_recall,
        "min_locality": min_locality,
        "max_drift": max_drift,
    }
    body = {"dry_run": dry_run} | {name: value for name, value in optional.items() if value is not None}
    headers = write_headers(idempotency_key, if_match, later)
    answer = ask(url, lambda client: client.call("POST", "/versions:fold", body, headers))
    if later:
        show(answer, as_json, operation_line(answer))
        return
    name = "dry run" if dry_run else f"version {answer['weights_version']}"
    report = (answer["report"] or {}).items()
    numbers = [f"{key} {value:.3g}" for key, value in report if isinstance(value, int | float)]
    show(answer, as_json, "  ".join([name, *numbers]), *(f"folded {fact}" for fact in answer["folded"]))


@app.command()
def export(
    version: int,
    output: Annotated[Path, typer.Argument(help="The file to write: .safetensors, or .zip.")],
    form: Annotated[str, typer.Option("--format", help="safetensors, peft or merged.")] = "safetensors",
    url: Url = DEFAULT_URL,
) -> None:
    """Write what a version holds to a file."""

    async def fetch(client: Client) -> dict[str, Any]:
        await client.download(f"/versions/{version}/export", {"format": form}, output)
        return {}

    with told_in_one_line(OSError):
        ask(url, fetch)
        typer.echo(f"{output}  {output.stat().st_size} bytes")


def _line(version: dict[str, Any]) -> str:
    parts = [str(version["version"]), version["kind"], version["created_at"]]
    if version["target"] is not None:
        parts.append(f"to {version['target']}")
    parts += [f"+{fact}" for fact in version["births"]] + [f"-{f}" for f in version["deaths"]]
    return "  ".join(parts)
