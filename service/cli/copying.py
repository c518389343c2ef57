"""`npt facts copy`: every fact of one service taught to another, such as one of another checkpoint."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import typer

from service.cli.client import SOURCE_API_KEY, Client, ClientError, connected
from service.cli.failing import fail, told_in_one_line
from service.cli.options import DEFAULT_URL, Url

PAGE = 100


def command(
    source: Annotated[
        str, typer.Argument(help="The server that knows the facts; its key in NPT_SOURCE_API_KEY.")
    ],
    url: Url = DEFAULT_URL,
) -> None:
    """Teach a server every fact that another one knows, in their order. May be repeated: what is there is
    not taught again. Fails if a fact was refused.
    """
    with told_in_one_line(ClientError):
        copied, refused = asyncio.run(copy(source, url))
    typer.echo(f"{copied} facts known")
    if refused:
        fail(f"{refused} facts refused")


async def copy(source: str, target: str) -> tuple[int, int]:
    """How many facts of the server at `source` the one at `target` knows then, and how many it refused.
    Raises `ClientError`.
    """
    copied = refused = 0
    async with connected(source, key_variable=SOURCE_API_KEY) as old, connected(target) as new:
        async for fact in _known(old):
            body = {"fact": fact["fact"], **fact["request"], "expires_at": fact["expires_at"]}
            try:
                await new.call("POST", "/facts", body, {"Idempotency-Key": f"copy-{fact['id']}"})
                copied += 1
            except ClientError as error:
                if error.kind is None or not error.kind.startswith("4"):
                    raise  # not this fact's fault
                refused += 1
                typer.echo(f"{fact['id']}  {error}: {fact['fact']}", err=True)
    return copied, refused


async def _known(client: Client) -> AsyncIterator[dict[str, Any]]:
    query: dict[str, Any] = {"state": "published", "limit": PAGE}
    while True:
        page = await client.call("GET", "/facts", query=query)
        for fact in page["items"]:
            yield fact
        if page["next_cursor"] is None:
            return
        query["cursor"] = page["next_cursor"]
