"""What the service does by itself, now and then, on a thread of its own."""

import threading
import time
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
    """Calls `chores` every so many seconds, each on its own thread, until it is closed. What fails is logged
    once, and tried again.
    """

    def __init__(self, chores: Sequence[Callable[[], object]], every_s: float = TICK_S) -> None:
        self._chores = chores
        self._every_s = every_s
        self._stopping = threading.Event()
        self._told: dict[int, str] = {}
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name="npt-housekeeping", daemon=True)
            for number in range(len(chores))
        ]

    def start(self) -> None:
        """From now on."""
        for thread in self._threads:
            thread.start()

    def close(self, deadline: float) -> None:
        """No more; waits for the chores under way until `deadline` (monotonic)."""
        self._stopping.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(deadline - time.monotonic(), 0))

    def _run(self, number: int) -> None:
        while not self._stopping.wait(self._every_s):
            self._do(number)

    def tick(self) -> None:
        """Every chore once."""
        for number in range(len(self._chores)):
            self._do(number)

    def _do(self, number: int) -> None:
        try:
            self._chores[number]()
        except (WriteError, LedgerError, StorageError, BlobError) as error:
            if self._told.get(number) != str(error):
                log.error("a chore failed", reason=str(error))
            self._told[number] = str(error)
        except Exception as error:  # a thread that ended would leave the chore undone unnoticed
            if self._told.get(number) != str(error):
                log.exception("a chore failed")
            self._told[number] = str(error)
        else:
            self._told.pop(number, None)
