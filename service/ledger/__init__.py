"""The ledger of facts and versions: append-only, hash-chained, in SQL. No torch here."""

from service.ledger.database import parsed, sqlite_url
from service.ledger.errors import (
    DataFolderBusy,
    LedgerDamaged,
    LedgerError,
    LedgerTooNew,
    LedgerUnavailable,
    StaleParent,
    WrongCheckpoint,
)
from service.ledger.ledger import END, START, Ledger, Position, now, timestamp
from service.ledger.lock import FolderLock
from service.ledger.records import (
    ANONYMOUS,
    MAX_VERSION,
    SAME_FOLD,
    SYSTEM,
    AuditEntry,
    Change,
    Fact,
    FactState,
    IdempotencyKey,
    Snapshot,
    StoredFact,
    Version,
    VersionKind,
)

__all__ = [
    "ANONYMOUS",
    "END",
    "MAX_VERSION",
    "SAME_FOLD",
    "START",
    "SYSTEM",
    "AuditEntry",
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
    "LedgerUnavailable",
    "Position",
    "Snapshot",
    "StaleParent",
    "StoredFact",
    "Version",
    "VersionKind",
    "WrongCheckpoint",
    "now",
    "parsed",
    "sqlite_url",
    "timestamp",
]
