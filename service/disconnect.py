"""A client that leaves takes its work along."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.requests import Request


@asynccontextmanager
async def ended_with_its_client(request: Request, cancel: Callable[[], None]) -> AsyncIterator[None]:
    """`cancel` when nobody waits for the answer any more, and at the end of the block."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        cancel()
