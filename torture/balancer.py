"""A port that leads to the replicas that are ready, as a Service of Kubernetes does: connection by
connection, knowing nothing of HTTP but the answer of `/readyz`.
"""

import asyncio
import contextlib
import threading
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

PROBE_EVERY_S = 0.1
PROBE_TIMEOUT_S = 2.0
CHUNK = 1 << 16


class Balancer:
    """Runs on a thread of its own from construction on; `add` and `remove` may be called from any."""

    def __init__(self) -> None:
        self._backends: dict[int, asyncio.Task[None]] = {}
        self._ready: list[int] = []
        self._changed = threading.Condition()
        self._turn = 0
        self._led: dict[int, int] = {}
        self._connections: set[asyncio.Task[None]] = set()  # asyncio alone does not keep them alive
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="balancer", daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def add(self, port: int) -> None:
        """Probe the replica at `port`, and send it connections while it is ready."""

        async def begin() -> None:
            self._backends[port] = asyncio.create_task(self._probe(port))

        self._run(begin())

    def remove(self, port: int) -> None:
        """No more connections; those that there are go on."""

        async def end() -> None:
            self._backends.pop(port).cancel()
            self._tell(port, False)

        self._run(end())

    def replica_of(self, port: int) -> int | None:
        """Which replica the last connection from a port was led to."""
        return self._led.get(port)

    def wait(
        self, port: int, ready: bool = True, gone: Callable[[], bool] = lambda: False, seconds: float = 120.0
    ) -> None:
        """Until a replica is seen to be ready, or not to be. Raises RuntimeError after so long, or when it is
        `gone`.
        """
        end = time.monotonic() + seconds
        with self._changed:
            while (port in self._ready) != ready:
                if gone() or time.monotonic() > end:
                    raise RuntimeError(f"the replica at {port} did not become {'' if ready else 'un'}ready")
                self._changed.wait(PROBE_EVERY_S)

    def close(self) -> None:
        """Cut every connection."""

        async def end() -> None:
            self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def _tell(self, port: int, ready: bool) -> None:
        with self._changed:
            if ready != (port in self._ready):
                self._ready = [p for p in self._ready if p != port] + ([port] if ready else [])
                self._changed.notify_all()

    async def _probe(self, port: int) -> None:
        while True:
            try:
                # `wait_for` of Python 3.11 may lose the cancellation that comes as it ends.
                async with asyncio.timeout(PROBE_TIMEOUT_S):
                    ready = await _is_ready(port)
            except (OSError, TimeoutError):
                ready = False
            self._tell(port, ready)
            await asyncio.sleep(PROBE_EVERY_S)

    def _connected(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = self._loop.create_task(self._joined(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _joined(self, reader: StreamReader, writer: StreamWriter) -> None:
        client = (writer.get_extra_info("peername") or ("", 0))[1]  # none where it is gone already
        backend = await self._backend(client)
        if backend is None:
            writer.transport.abort()
            return
        there, back = (
            asyncio.create_task(_copy(reader, backend[1])),
            asyncio.create_task(_copy(backend[0], writer)),
        )
        # A replica that is gone ends the connection of its client, and the other way round.
        await asyncio.wait({there, back}, return_when=asyncio.FIRST_COMPLETED)
        if back.done():
            there.cancel()
        await asyncio.gather(there, back, return_exceptions=True)
        for end in (backend[1], writer):
            end.close()

    async def _backend(self, client: int) -> tuple[StreamReader, StreamWriter] | None:
        """A connection to the next replica that is ready and takes it."""
        ready = list(self._ready)
        self._turn += 1
        self._led.pop(client, None)
        for number in range(len(ready)):
            port = ready[(self._turn + number) % len(ready)]
            with contextlib.suppress(OSError):
                found = await asyncio.open_connection("127.0.0.1", port)
                self._led[client] = port
                return found
        return None


async def _is_ready(port: int) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return (await reader.readline()).startswith(b"HTTP/1.1 200")
    finally:
        writer.close()


async def _copy(reader: StreamReader, writer: StreamWriter) -> None:
    """Bytes, until one of the two is gone."""
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
