"""Options that several commands share, and how their answers are shown."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Annotated, Any

import typer

from service.cli.client import URL, Client, ClientError, connected
from service.cli.failing import told_in_one_line

Url = Annotated[str, typer.Option(envvar="NPT_URL", help="The server to talk to.")]
Json = Annotated[bool, typer.Option("--json", help="Print the server's answer as it is.")]
Cursor = Annotated[str | None, typer.Option(help="Where the page before ended.")]
Limit = Annotated[int, typer.Option(help="Entries to a page.")]
IfMatch = Annotated[int | None, typer.Option(help="Write only if this is the newest version.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Measure, write nothing.")]
IdempotencyKey = Annotated[str | None, typer.Option(help="Makes a repeat safe.")]
Later = Annotated[bool, typer.Option("--later", help="Do not wait: print the operation to ask for.")]
DEFAULT_URL = URL


def ask(url: str, question: Callable[[Client], Coroutine[Any, Any, dict[str, Any]]]) -> dict[str, Any]:
    """Ask the server at `url` one question; a refusal is told in one line."""

    async def asking() -> dict[str, Any]:
        async with connected(url) as client:
            return await question(client)

    with told_in_one_line(ClientError):
        return asyncio.run(asking())


def show(answer: Mapping[str, Any], as_json: bool, *lines: str) -> None:
    """Print an answer for a program, or `lines` for a person."""
    if as_json:
        typer.echo(json.dumps(answer, ensure_ascii=False))
        return
    for line in lines:
        typer.echo(line)


def show_page(page: Mapping[str, Any], as_json: bool, line: Callable[[Any], str]) -> None:
    """Print one page of a list, and how to go on."""
    show(page, as_json, *(line(item) for item in page["items"]))
    if page["next_cursor"] and not as_json:
        typer.echo(f"more: --cursor {page['next_cursor']}", err=True)


def etag(version: int | None) -> str | None:
    """A version as If-Match wants it."""
    return None if version is None else f'"{version}"'


def write_headers(
    idempotency_key: str | None, if_match: int | None, later: bool = False
) -> dict[str, str | None]:
    """What is said about a write beside its body."""
    return {
        "Idempotency-Key": idempotency_key,
        "If-Match": etag(if_match),
        "Prefer": "respond-async" if later else None,
    }


def operation_line(operation: Mapping[str, Any]) -> str:
    """An operation, and what became of it."""
    problem = operation["problem"] or {}
    told = problem.get("detail") or problem.get("title")
    version = (operation["result"] or {}).get("weights_version")
    parts = [operation["id"], operation["state"], operation["action"], operation["created_at"]]
    parts += [f"version {version}"] if version is not None else []
    return "  ".join([*parts, *([told] if told else [])])
