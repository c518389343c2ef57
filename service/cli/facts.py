"""`npt facts`."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from service.cli import copying
from service.cli.failing import fail, told_in_one_line
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

app = typer.Typer(help="Teach, find and retract facts.", no_args_is_help=True)
app.command("copy")(copying.command)


class State(StrEnum):
    """Facts that the newest version knows, or does not know any more."""

    PUBLISHED = "published"
    RETRACTED = "retracted"


@app.command()
def add(
    fact: Annotated[str, typer.Argument(help="A sentence.")],
    question: Annotated[
        list[str] | None, typer.Option(help="QUESTION=ANSWER; may be given several times.")
    ] = None,
    strategy: Annotated[str | None, typer.Option(help="bank, modulation or ridge.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Strength, above 0 and at most 1.")] = None,
    layer: Annotated[
        list[int] | None, typer.Option(help="A layer to write; may be given several times.")
    ] = None,
    token_idx: Annotated[int | None, typer.Option(help="With modulation: the token to consolidate.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="With modulation: factual_recall, reasoning or creative.")
    ] = None,
    on_conflict: Annotated[
        str | None,
        typer.Option(help="A stored fact that says otherwise: supersede, reject or allow."),
    ] = None,
    expires_at: Annotated[
        str | None, typer.Option(help="When it is retracted by itself, such as 2030-01-01T00:00:00Z.")
    ] = None,
    dry_run: DryRun = False,
    idempotency_key: IdempotencyKey = None,
    if_match: IfMatch = None,
    later: Later = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Teach the model a fact."""
    body: dict[str, Any] = {
        "fact": fact,
        "questions": [_question(text) for text in question or []],
        "dry_run": dry_run,
    }
    optional = {
        "strategy": strategy,
        "alpha": alpha,
        "layers": layer or None,
        "token_idx": token_idx,
        "preset": preset,
        "on_conflict": on_conflict,
        "expires_at": expires_at,
    }
    body |= {name: value for name, value in optional.items() if value is not None}
    headers = write_headers(idempotency_key, if_match, later)
    answer = ask(url, lambda client: client.call("POST", "/facts", body, headers))
    if later:
        show(answer, as_json, operation_line(answer))
        return
    name = answer.get("id", "dry run")
    lines = [f"{name}  version {answer['weights_version']}  {_measured(answer['report'])}"]
    lines += [f"supersedes {old}" for old in answer.get("superseded", [])]
    lines += [f"contradicts {old}" for old in answer.get("conflicts", [])]
    show(answer, as_json, *lines)


@app.command()
def batch(
    file: Annotated[
        Path,
        typer.Argument(help="A fact on each line, a sentence or JSON as POST /facts takes it; - is stdin."),
    ],
    dry_run: DryRun = False,
    idempotency_key: IdempotencyKey = None,
    if_match: IfMatch = None,
    later: Later = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Teach facts in one version: all of them, or none."""
    with told_in_one_line(OSError, UnicodeDecodeError):
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    body = {"facts": [_fact(line) for line in text.splitlines() if line.strip()], "dry_run": dry_run}
    headers = write_headers(idempotency_key, if_match, later)
    answer = ask(url, lambda client: client.call("POST", "/facts:batch", body, headers))
    if later:
        show(answer, as_json, operation_line(answer))
        return
    version = f"version {answer['weights_version']}"
    reports = [("dry run", report) for report in answer.get("reports", [])]
    reports += [(fact["id"], fact["report"]) for fact in answer.get("facts", [])]
    lines = [f"{name}  {version}  {_measured(report)}" for name, report in reports]
    lines += [f"supersedes {old}" for old in answer.get("superseded", [])]
    lines += [f"contradicts {old}" for old in answer.get("conflicts", [])]
    show(answer, as_json, *lines)


@app.command()
def search(
    prompt: Annotated[str, typer.Argument(help="As it would be put to the model.")],
    weights_version: Annotated[int | None, typer.Option(help="Whose facts; by default the newest.")] = None,
    limit: Limit = 10,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Which stored facts would answer a prompt, the nearest first."""
    query = {"q": prompt, "weights_version": weights_version, "limit": limit}
    found = ask(url, lambda client: client.call("GET", "/facts:search", query=query))
    show(found, as_json, *(_match(item) for item in found["items"]))


@app.command("list")
def list_facts(
    state: Annotated[State | None, typer.Option(help="Only those in this state.")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List facts, oldest first."""
    query = {"limit": limit, "cursor": cursor, "state": state and state.value}
    page = ask(url, lambda client: client.call("GET", "/facts", query=query))
    show_page(page, as_json, lambda fact: f"{fact['id']}  {_life(fact)}  {fact['fact']}")


@app.command()
def get(fact_id: str, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Show one fact."""
    fact = ask(url, lambda client: client.call("GET", _path(fact_id)))
    show(fact, as_json, f"{fact['id']}  {_life(fact)}  {fact['fact']}", _measured(fact["report"]))


@app.command()
def retract(fact_id: str, if_match: IfMatch = None, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Make the model forget a fact."""
    headers = {"If-Match": etag(if_match)}
    answer = ask(url, lambda client: client.call("DELETE", _path(fact_id), headers=headers))
    show(answer, as_json, f"{answer['id']}  retracted in version {answer['weights_version']}")


def _path(fact_id: str) -> str:
    return f"/facts/{quote(fact_id, safe='')}"


def _question(text: str) -> dict[str, str]:
    question, separator, answer = text.rpartition("=")
    if not separator:
        fail(f"--question {text!r} is not QUESTION=ANSWER")
    return {"question": question, "answer": answer}


def _life(fact: dict[str, Any]) -> str:
    return f"{fact['state']} [{fact['born']}, {'' if fact['died'] is None else fact['died']})"


def _fact(line: str) -> Any:
    if not line.lstrip().startswith("{"):
        return {"fact": line}
    try:
        return json.loads(line)
    except ValueError as error:
        fail(f"{line!r} is not JSON: {error}")


def _match(item: dict[str, Any]) -> str:
    sign = "fires" if item["fires"] else "     "
    numbers = f"{item['cosine']:.3f} / {item['threshold']:.3f}  layer {item['layer']}"
    return f"{sign}  {numbers}  {item['id']}{'  folded' if item['folded'] else ''}  {item['fact']}"


def _measured(report: dict[str, Any]) -> str:
    """The plain numbers of a report, in its order."""
    numbers = report.items()
    shown = [f"{name} {value:.3g}" for name, value in numbers if isinstance(value, int | float)]
    return "  ".join(shown)
