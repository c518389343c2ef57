"""Who asks."""

from pydantic import Field

from service.ledger import ANONYMOUS
from service.ledger.api_keys import ApiKey, Scope
from service.schemas.common import Out


class KeyOut(Out):
    """The API key that was shown, and what it allows."""

    id: str = Field(description="as audit and operations name it; anonymous on a server without keys")
    name: str | None = Field(description="null on a server without keys")
    scopes: list[Scope] = Field(description="what it opens, `admin` being everything; all without keys")
    rate_per_minute: int | None = Field(description="null: any number of requests")
    max_concurrency: int | None = Field(description="null: any number at once")
    expires_at: str | None = Field(description="null: never")
    weights_version: int = Field(description="the newest version when this was answered")

    @classmethod
    def of(cls, key: ApiKey | None, weights_version: int) -> "KeyOut":
        """A key, or nobody's on a server without keys."""
        return cls(
            id=ANONYMOUS if key is None else key.id,
            name=None if key is None else key.name,
            scopes=[scope for scope in Scope if key is None or key.allows(scope)],
            rate_per_minute=None if key is None else key.rate_per_minute,
            max_concurrency=None if key is None else key.max_concurrency,
            expires_at=None if key is None else key.expires_at,
            weights_version=weights_version,
        )
