"""Who may ask for what: API keys, of which only a hash is kept.

A key is 256 random bits, so a plain SHA-256 of it cannot be searched. Rows are never deleted: a server that
had keys once never answers strangers again.
"""

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from secrets import token_hex, token_urlsafe

from sqlalchemy import Executable, RowMapping, insert, select, update
from sqlalchemy.exc import IntegrityError

from service.ledger.checksums import sound, with_checksum
from service.ledger.database import reading, writing
from service.ledger.errors import LedgerDamaged
from service.ledger.ledger import Ledger, now, record
from service.ledger.tables import api_keys

PREFIX = "npt_"
ATTEMPTS = 10


class Scope(StrEnum):
    """What a key allows. `admin` allows everything."""

    GENERATE = "generate"
    FACTS_READ = "facts:read"
    FACTS_WRITE = "facts:write"
    VERSIONS_WRITE = "versions:write"
    ADMIN = "admin"


class UnknownKey(Exception):
    def __init__(self, key_id: str) -> None:
        super().__init__(f"there is no key {key_id}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret. Limits that are `None` do not limit."""

    id: str
    name: str
    sha256: str
    scopes: frozenset[Scope]
    rate_per_minute: int | None
    max_concurrency: int | None
    created_at: str
    expires_at: str | None
    revoked_at: str | None

    def valid_at(self, moment: str) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or moment < self.expires_at)

    def allows(self, scope: Scope) -> bool:
        """Whether it has the scope."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


class ApiKeys:
    """The keys of a ledger; what changes them is told in its audit.

    Raises the `LedgerError` and `StorageError` trees.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._engine = ledger.engine
        self._name = ledger.name

    def all(self) -> list[ApiKey]:
        """Every key there ever was, oldest first."""
        query = select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id)
        with reading(self._engine) as connection:
            rows = [sound(connection, api_keys, row) for row in connection.execute(query).mappings()]
        try:
            return [_key(row) for row in rows]
        except ValueError as error:
            raise LedgerDamaged(self._name, f"scopes of an API key: {error}") from error

    def create(
        self,
        name: str,
        scopes: Iterable[Scope],
        actor: str,
        rate_per_minute: int | None = None,
        max_concurrency: int | None = None,
        expires_at: str | None = None,
        secret: str | None = None,
    ) -> tuple[ApiKey, str]:
        """A new key, and its secret, which nobody can tell again. A `secret` that is given must be as hard to
        guess as ours are: a hash of it is all that protects it.
        """
        secret = secret or PREFIX + token_urlsafe(32)
        key = ApiKey(
            id=f"key_{token_hex(6)}",
            name=name,
            sha256=hashed(secret),
            scopes=frozenset(scopes),
            rate_per_minute=rate_per_minute,
            max_concurrency=max_concurrency,
            created_at=now(),
            expires_at=expires_at,
            revoked_at=None,
        )
        detail = {"name": name, "scopes": sorted(key.scopes)}
        try:
            self._write(insert(api_keys).values(_row(key)), actor, "key.create", key.id, detail)
        except IntegrityError:  # two that start at once may be given the same secret
            known = matching(self.all(), secret)
            if known is None:
                raise
            return known, secret
        return key, secret

    def revoke(self, key_id: str, actor: str) -> ApiKey:
        """From now on the key is refused; once more changes nothing. Raises `UnknownKey`."""
        found = {key.id: key for key in self.all()}.get(key_id)
        if found is None:
            raise UnknownKey(key_id)
        if found.revoked_at is None:
            row = _row(replace(found, revoked_at=now()))
            change = update(api_keys).where(api_keys.c.id == key_id).values(row)
            self._write(change, actor, "key.revoke", key_id, {})
        return {key.id: key for key in self.all()}[key_id]

    def _write(
        self, statement: Executable, actor: str, action: str, target: str, detail: Mapping[str, object]
    ) -> None:
        for attempt in range(ATTEMPTS):
            try:
                with writing(self._engine) as connection:
                    connection.execute(statement)
                    record(connection, actor, action, target, detail)
                return
            except IntegrityError:  # somebody else added to the audit at the same moment
                if attempt == ATTEMPTS - 1:
                    raise


def hashed(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def matching(keys: Sequence[ApiKey], secret: str) -> ApiKey | None:
    """The key with this secret; every one is compared, each in constant time."""
    wanted, found = hashed(secret), None
    for key in keys:
        if hmac.compare_digest(key.sha256, wanted):
            found = key
    return found


def _row(key: ApiKey) -> dict[str, object]:
    return with_checksum(api_keys, asdict(key) | {"scopes": json.dumps(sorted(key.scopes))})


def _key(row: RowMapping) -> ApiKey:
    """Raises ValueError for scopes that this release does not know."""
    values = dict(row) | {"scopes": frozenset(Scope(scope) for scope in json.loads(row["scopes"]))}
    del values["checksum"]
    return ApiKey(**values)
