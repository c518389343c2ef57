"""Idempotency keys whose write is under way."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from service.commands import KeyInFlight


class KeysInFlight:
    """Lets one request per actor and key through at a time. Thread-safe."""

    def __init__(self) -> None:
        self._keys: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    @contextmanager
    def reserved(self, actor: str, key: str) -> Iterator[None]:
        """Hold `key` of `actor`. Raises `KeyInFlight` where another request holds it."""
        with self._lock:
            if (actor, key) in self._keys:
                raise KeyInFlight
            self._keys.add((actor, key))
        try:
            yield
        finally:
            with self._lock:
                self._keys.discard((actor, key))
