"""`npt keys`: on the database itself, beside a server or without one."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.failing import fail

if TYPE_CHECKING:
    from service.ledger.api_keys import ApiKey

app = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)

Data = Annotated[Path | None, typer.Option(help="Folder of the ledger.  [data]")]
ACTOR = "cli"
MIN_SECRET = 32
"""Characters of a secret that is given: 128 bits, if they are of hex."""


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What it is for, or whose it is.")],
    scope: Annotated[
        list[str],
        typer.Option(help="generate, facts:read, facts:write, versions:write or admin; several times."),
    ],
    rate: Annotated[int | None, typer.Option(min=1, help="Requests a minute, in each replica.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Requests at once, in each replica.")] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Valid for so many days.")] = None,
    secret_file: Annotated[
        Path | None,
        typer.Option(help="The secret, instead of a new one; where it is a key already, nothing changes."),
    ] = None,
    data: Data = None,
) -> None:
    """Make a key. It is shown once, on standard output; from the first one on a server asks for keys."""
    from service.cli.ledger import opened
    from service.ledger import timestamp
    from service.ledger.api_keys import ApiKeys, Scope, matching

    unknown = [each for each in scope if each not in set(Scope)]
    if unknown:
        fail(f"there is no scope {unknown[0]}: {', '.join(Scope)}")
    expires = None if days is None else timestamp(datetime.now(UTC) + timedelta(days=days))
    given = None if secret_file is None else _secret(secret_file)
    with opened(data) as ledger:
        keys = ApiKeys(ledger)
        known = None if given is None else matching(keys.all(), given)
        if known is not None:
            typer.echo(_line(known), err=True)
            return
        scopes = [Scope(each) for each in scope]
        key, secret = keys.create(name, scopes, ACTOR, rate, concurrency, expires, given)
    if given is None:
        typer.echo(secret)
    typer.echo(_line(key), err=True)


@app.command("list")
def list_keys(data: Data = None) -> None:
    """All keys there ever were, without their secrets."""
    from service.cli.ledger import opened
    from service.ledger.api_keys import ApiKeys

    with opened(data) as ledger:
        for key in ApiKeys(ledger).all():
            typer.echo(_line(key))


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(help="As `list` shows it.")], data: Data = None) -> None:
    """Refuse a key from now on; running servers do so within a second."""
    from service.cli.ledger import opened
    from service.ledger.api_keys import ApiKeys, UnknownKey

    with opened(data) as ledger:
        try:
            typer.echo(_line(ApiKeys(ledger).revoke(key_id, ACTOR)))
        except UnknownKey as error:
            fail(error)


def _secret(file: Path) -> str:
    try:
        secret = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        fail(error)
    if len(secret) < MIN_SECRET or not secret.isascii() or not secret.isprintable() or " " in secret:
        fail(f"{file}: a secret has {MIN_SECRET} characters or more, and no spaces: openssl rand -hex 32")
    return secret


def _line(key: "ApiKey") -> str:
    parts = [key.id, key.name, ",".join(sorted(key.scopes)), f"created {key.created_at}"]
    if key.rate_per_minute is not None:
        parts.append(f"{key.rate_per_minute}/min")
    if key.max_concurrency is not None:
        parts.append(f"{key.max_concurrency} at once")
    if key.expires_at is not None:
        parts.append(f"expires {key.expires_at}")
    if key.revoked_at is not None:
        parts.append(f"revoked {key.revoked_at}")
    return "  ".join(parts)
