"""`npt generate`."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.client import Client, ClientError, connected
from service.cli.failing import fail, told_in_one_line
from service.cli.launcher import processes
from service.cli.options import DEFAULT_URL, Json, Url
from service.cli.split import answer

LOCAL = "http://localhost"


def command(
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    context: Annotated[
        list[str] | None, typer.Option(help="A sentence to read first; may be repeated.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option()] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option()] = None,
    top_k: Annotated[int | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this; repeatable.")] = None,
    weights_version: Annotated[int | None, typer.Option(help="Answer as this version.")] = None,
    modulation_scale: Annotated[float | None, typer.Option(help="0 switches it off.")] = None,
    as_json: Json = False,
    model: Annotated[
        str | None, typer.Option(help="Load this checkpoint here instead of asking a server.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="With --model: the folder of its facts.")] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Continue a prompt, on a server or with a model loaded here; under torchrun, split among processes."""
    if data is not None and model is None:
        fail("--data goes with --model")
    optional = {
        "context": context or None,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop": stop or None,
        "weights_version": weights_version,
        "modulation_scale": modulation_scale,
    }
    body = {"prompt": prompt} | {name: v for name, v in optional.items() if v is not None}
    if processes() > 1:
        if model is None or data is not None or as_json:
            fail("under torchrun, give --model, a checkpoint with its facts, and neither --data nor --json")
        answer(model, body)
        return
    with told_in_one_line(ClientError):
        if model is None:
            asyncio.run(_ask(connected(url), body, as_json))
        else:
            _ask_here(model, data, body, as_json)


def _ask_here(model: str, data: Path | None, body: dict[str, Any], as_json: bool) -> None:
    from service.cli.serving import load_host, read_settings
    from service.logs import configure_logging

    configure_logging("ERROR")
    with tempfile.TemporaryDirectory(prefix="npt-") as nowhere:
        host = load_host(read_settings(model=model, data=data or Path(nowhere)))
        try:
            asyncio.run(_ask(_in_process(host), body, as_json))
        finally:
            host.close()


@asynccontextmanager
async def _in_process(host: Any) -> AsyncIterator[Client]:
    import httpx2

    from service.app import create_app

    async with connected(LOCAL, httpx2.ASGITransport(create_app(host))) as client:
        yield client


async def _ask(connection: Any, body: dict[str, Any], as_json: bool) -> None:
    async with connection as client:
        if as_json:
            answer = await client.call("POST", "/generate", body)
            typer.echo(json.dumps(answer, ensure_ascii=False))
            return
        async for name, event in client.stream("/generate", body | {"stream": True}):
            if name == "error":
                raise ClientError(event["title"])
            if name == "token":
                typer.echo(event["text"], nl=False)
        typer.echo()
