"""`npt facts`."""

from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import quote

import typer

from service.cli.failing import fail
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

app = typer.Typer(help="Teach, list and retract facts.", no_args_is_help=True)


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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure, write nothing.")] = False,
    idempotency_key: Annotated[str | None, typer.Option(help="Makes a repeat safe.")] = None,
    if_match: IfMatch = None,
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
    }
    body |= {name: value for name, value in optional.items() if value is not None}
    headers = {"Idempotency-Key": idempotency_key, "If-Match": etag(if_match)}
    answer = ask(url, lambda client: client.call("POST", "/facts", body, headers))
    name = answer.get("id", "dry run")
    show(answer, as_json, f"{name}  version {answer['weights_version']}  {_measured(answer)}")


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
    show(fact, as_json, f"{fact['id']}  {_life(fact)}  {fact['fact']}", _measured(fact))


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


def _measured(answer: dict[str, Any]) -> str:
    """The plain numbers of a report, in its order."""
    numbers = answer["report"].items()
    shown = [f"{name} {value:.3g}" for name, value in numbers if isinstance(value, int | float)]
    return "  ".join(shown)
