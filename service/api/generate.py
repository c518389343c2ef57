"""POST /generate."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, Request, Response

from npt_core.engine import Stream
from service import problems
from service.answers import StreamedAnswer, whole
from service.api.dependencies import HostDep, needs
from service.api.documentation import answers
from service.generation import admit
from service.ledger.api_keys import Scope
from service.middleware.version import HEADER
from service.schemas.generate import GenerateIn, GenerateOut

router = APIRouter(tags=["generate"], dependencies=[needs(Scope.GENERATE, Scope.GENERATE)])

_EVENTS = {
    "description": "The answer; with `stream`, events `token`, then `done` or `error`.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


@router.post(
    "/generate",
    summary="Continue a prompt",
    response_model=GenerateOut,
    response_model_exclude_none=True,
    responses={
        200: _EVENTS,
        **answers(
            problems.MALFORMED,
            problems.VERSION_NOT_FOUND,
            problems.VERSION_GONE,
            problems.TOO_LARGE,
            problems.MEDIA,
            problems.INVALID,
            problems.PROMPT_TOO_LONG,
            problems.INTERNAL,
            problems.OVERLOADED,
            problems.NOT_REACHED,
        ),
    },
)
async def generate(
    asked: GenerateIn, host: HostDep, request: Request, response: Response
) -> GenerateOut | StreamedAnswer:
    """The prompt is answered at one weights version from its first token to its last, whatever is
    written meanwhile: the newest, or the one it names."""
    running = await admit(host, asked)
    headers = {HEADER: str(running.weights_version)}
    if asked.stream:
        return StreamedAnswer(running, headers)
    response.headers.update(headers)
    async with _ended_with_its_client(request, running.stream):
        return await whole(running)


@asynccontextmanager
async def _ended_with_its_client(request: Request, stream: Stream) -> AsyncIterator[None]:
    """Stop generating when nobody waits for the answer any more."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        stream.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        stream.cancel()
