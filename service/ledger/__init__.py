"""The ledger of facts and versions: append-only, hash-chained, in SQL. No torch here."""

from service.ledger.errors import (
    DataFolderBusy,
    LedgerDamaged,
    LedgerError,
    LedgerTooNew,
    StaleParent,
    WrongCheckpoint,
)
from service.ledger.ledger import START, Ledger, Position, now
from service.ledger.lock import FolderLock
from service.ledger.records import (
    Change,
    Fact,
    FactState,
    IdempotencyKey,
    StoredFact,
    Version,
    VersionKind,
)

__all__ = [
    "START",
    "Change",
    "DataFolderBusy",
    "Fact",
    "FactState",
    "FolderLock",
    "IdempotencyKey",
    "Ledger",
    "LedgerDamaged",
    "LedgerError",
    "LedgerTooNew",
    "Position",
    "StaleParent",
    "StoredFact",
    "Version",
    "VersionKind",
    "WrongCheckpoint",
    "now",
]
