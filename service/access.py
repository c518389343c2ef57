"""Who is asking, and how often they may.

AccessError
├── NotAuthenticated   no key, or one that is not valid
├── ScopeMissing       the key does not allow it
├── RateExceeded       more requests a minute than the key allows
└── ConcurrencyExceeded  more requests at once than the key allows
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from service.ledger import LedgerError, now
from service.ledger.api_keys import ApiKey, ApiKeys, Scope, matching
from service.storage import StorageError

log = structlog.get_logger(__name__)

FRESH_S = 0.5
"""Keys are read again after so long: one that is revoked is refused within a second, in every replica."""


class AccessError(Exception):
    """Base of what is refused to a caller."""


class NotAuthenticated(AccessError):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)


class ScopeMissing(AccessError):
    def __init__(self, scope: Scope) -> None:
        super().__init__(f"the key lacks the scope {scope}")


class RateExceeded(AccessError):
    """`retry_after_s`: when the next request is answered."""

    def __init__(self, limit: int, retry_after_s: int) -> None:
        super().__init__(f"the key allows {limit} requests a minute")
        self.retry_after_s = retry_after_s


class ConcurrencyExceeded(AccessError):
    retry_after_s = 1

    def __init__(self, limit: int) -> None:
        super().__init__(f"the key allows {limit} requests at once")


class Access:
    """Keys as they were at most a second ago; limits as this process counts them. Thread-safe."""

    def __init__(self, keys: ApiKeys) -> None:
        self._keys = keys
        self._known = tuple(keys.all())
        self._read = time.monotonic()
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._rates = MovingWindowRateLimiter(MemoryStorage())
        self._running: Counter[str] = Counter()

    @property
    def stale(self) -> bool:
        """Whether `refresh` is due, which asks the database, and nobody is at it."""
        return time.monotonic() - self._read > FRESH_S and not self._reading.locked()

    def refresh(self) -> None:
        """Read the keys again, unless somebody does so now. Where the database does not answer, those that
        are known stay valid.
        """
        if not self._reading.acquire(blocking=False):
            return
        try:
            self._known = tuple(self._keys.all())
        except (LedgerError, StorageError) as error:
            log.warning("keys cannot be read again", reason=str(error))
        finally:
            self._read = time.monotonic()
            self._reading.release()

    @property
    def demanded(self) -> bool:
        """Whether a key is needed: from the first one on, for ever."""
        return bool(self._known)

    def identify(self, authorization: str | None) -> ApiKey | None:
        """The key in an `Authorization` header; `None` where none is needed.

        Raises:
            NotAuthenticated: there is none, or it is not valid.
        """
        if not self.demanded:
            return None
        if authorization is None:
            raise NotAuthenticated("send Authorization: Bearer with an API key")
        kind, _, secret = authorization.partition(" ")
        key = matching(self._known, secret.strip()) if kind.lower() == "bearer" else None
        if key is None or not key.valid_at(now()):
            raise NotAuthenticated("the API key is not valid")
        return key

    @contextmanager
    def admitted(self, key: ApiKey) -> Iterator[None]:
        """One request of `key`, from its start to its end. Raises `RateExceeded`, `ConcurrencyExceeded`."""
        with self._lock:
            if key.max_concurrency is not None and self._running[key.id] >= key.max_concurrency:
                raise ConcurrencyExceeded(key.max_concurrency)
            self._check_rate(key)
            self._running[key.id] += 1
        try:
            yield
        finally:
            with self._lock:
                self._running[key.id] -= 1

    def _check_rate(self, key: ApiKey) -> None:
        if key.rate_per_minute is None:
            return
        item = RateLimitItemPerMinute(key.rate_per_minute)
        if not self._rates.hit(item, key.id):
            wait = self._rates.get_window_stats(item, key.id).reset_time - time.time()
            raise RateExceeded(key.rate_per_minute, max(int(wait) + 1, 1))
