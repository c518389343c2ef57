"""What the service does by itself, now and then, on a thread of its own."""

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import structlog

from service.blobs import BlobError
from service.commands import WriteError
from service.ledger import Ledger, LedgerError, timestamp
from service.storage import StorageError
from service.writer import Writer

log = structlog.get_logger(__name__)

TICK_S = 1.0


def utc() -> datetime:
    """This moment."""
    return datetime.now(UTC)


class Expiry:
    """Retracts facts whose time has come; `version` tells the newest version.

    Of several replicas the first one does it; the others find nothing left to do.
    """

    def __init__(
        self, ledger: Ledger, writer: Writer, version: Callable[[], int], clock: Callable[[], datetime] = utc
    ) -> None:
        self._ledger = ledger
        self._writer = writer
        self._version = version
        self._clock = clock
        self._read = -1  # the version whose facts were looked through
        self._next: str | None = None

    def tick(self) -> None:
        """Raises as `Writer.expire`; then nothing was retracted, and the next tick tries again."""
        newest = self._version()
        if newest != self._read:
            # A fact that a later version brings is found when that version is.
            self._next = next((moment for moment, _ in self._ledger.expiring()), None)
            self._read = newest
        now = timestamp(self._clock())
        if self._next is not None and self._next <= now:
            self._writer.expire(now)
            self._read = -1


class Housekeeping:
    """Calls `chores` every second, until it is closed. What fails is logged once, and tried again."""

    def __init__(self, chores: Sequence[Callable[[], None]]) -> None:
        self._chores = chores
        self._stopping = threading.Event()
        self._told: dict[int, str] = {}
        self._thread = threading.Thread(target=self._run, name="npt-housekeeping", daemon=True)

    def start(self) -> None:
        """From now on."""
        self._thread.start()

    def close(self) -> None:
        """No more; waits for the chore under way."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(TICK_S):
            self.tick()

    def tick(self) -> None:
        """Every chore once."""
        for number, chore in enumerate(self._chores):
            try:
                chore()
            except (WriteError, LedgerError, StorageError, BlobError) as error:
                if self._told.get(number) != str(error):
                    log.error("a chore failed", reason=str(error))
                self._told[number] = str(error)
            else:
                self._told.pop(number, None)
