"""What can be wrong with the ledger.

LedgerError
├── DataFolderBusy     another process owns the folder
├── LedgerDamaged      the file, a row or the hash chain is not as it was written
├── LedgerTooNew       a later release wrote it
├── LedgerUnavailable  the database does not answer; it may later
├── WrongCheckpoint    it belongs to another model
└── StaleParent        the version to build on is no longer the newest
"""

from pathlib import Path


class LedgerError(Exception):
    """Base of everything the ledger raises."""


class DataFolderBusy(LedgerError):
    """One process owns a data folder at a time."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"data folder {folder} is in use by another process")


class LedgerDamaged(LedgerError):
    """Start from a backup: going on would build on facts nobody wrote."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"ledger {name} is damaged: {reason}")


class LedgerTooNew(LedgerError):
    """A later release wrote this ledger."""

    def __init__(self, name: str, found: str) -> None:
        super().__init__(f"ledger {name} has schema {found}, which this release does not know")


class LedgerUnavailable(LedgerError):
    """The database does not answer. Of a write under way it is not known whether it was made: a later
    read of the ledger tells."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"ledger {name} cannot be reached: {reason}")


class WrongCheckpoint(LedgerError):
    """The facts were computed for other weights and fit no others."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"ledger {name} belongs to another checkpoint: serve that one, or give another data folder"
        )


class StaleParent(LedgerError):
    """Another write came first."""

    def __init__(self, parent: int, newest: int) -> None:
        super().__init__(f"cannot build on version {parent}, the newest is {newest}")
