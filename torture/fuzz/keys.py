"""A key to everything, made before the server starts."""

from pathlib import Path

from service.ledger import Ledger, sqlite_url
from service.ledger.api_keys import ApiKeys, Scope
from service.stores import LEDGER_FILE


def make_key(data: Path) -> str:
    """The secret of a new key; from now on a server on this folder asks for one."""
    data.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(sqlite_url(data / LEDGER_FILE))
    try:
        return ApiKeys(ledger).create("fuzz", [Scope.ADMIN], "cli")[1]
    finally:
        ledger.close()
