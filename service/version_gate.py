"""Waiting for a version: read your own writes."""

import asyncio
import contextlib
import threading
from collections.abc import Callable


class VersionGate:
    """Lets coroutines wait until `current()` reaches a version; `announce` wakes them."""

    def __init__(self, current: Callable[[], int]) -> None:
        self._current = current
        self._waiters: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._lock = threading.Lock()

    def announce(self) -> None:
        """A version was published. Callable from any thread."""
        with self._lock:
            for loop, event in self._waiters:
                # A loop that is gone has nobody waiting; the version is published all the same.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(event.set)

    async def wait_for(self, version: int, timeout_s: float) -> bool:
        """Whether `version` was there within `timeout_s`."""
        event = asyncio.Event()
        waiter = (asyncio.get_running_loop(), event)
        with self._lock:
            self._waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                while self._current() < version:
                    await event.wait()
                    event.clear()
        except TimeoutError:
            return self._current() >= version
        finally:
            with self._lock:
                self._waiters.discard(waiter)
        return True
