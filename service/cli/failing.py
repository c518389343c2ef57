"""How a command fails: one line on standard error, and exit code 1."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer


def fail(reason: object) -> NoReturn:
    """End the command with a reason, in one line."""
    typer.echo(f"npt: {' '.join(str(reason).split())}", err=True)
    raise typer.Exit(1)


@contextmanager
def told_in_one_line(*errors: type[Exception]) -> Iterator[None]:
    """Turn these expected errors into one line; any other one is a bug and shows its trace."""
    try:
        yield
    except errors as error:
        fail(error)
