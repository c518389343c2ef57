"""One process owns a data folder."""

from pathlib import Path

from filelock import FileLock, Timeout

from service.ledger.errors import DataFolderBusy
from service.storage import PRIVATE_FILE, StorageFailed


class FolderLock:
    """Held from construction to `release`; the system drops it when the process dies.

    Raises:
        DataFolderBusy: another process holds it.
        StorageFailed: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._lock = FileLock(folder / ".lock", mode=PRIVATE_FILE)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise DataFolderBusy(folder) from error
        except OSError as error:
            raise StorageFailed(f"cannot lock the folder {folder}: {error.strerror}") from error

    def release(self) -> None:
        """Let another process have the folder."""
        self._lock.release()
