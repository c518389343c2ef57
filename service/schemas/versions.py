"""The /versions resource."""

from pydantic import Field

from service.ledger import Version, VersionKind
from service.schemas.common import Out


class VersionOut(Out):
    """One step of history."""

    version: int
    parent: int | None
    kind: VersionKind
    births: list[str] = Field(description="ids of the facts that this version began to know")
    deaths: list[str] = Field(description="ids of the facts that it no longer knows")
    target: int | None = Field(description="rollback: the version whose facts came back")
    created_at: str
    chain: str = Field(description="hash over this version and all before it")

    @classmethod
    def of(cls, version: Version) -> "VersionOut":
        """From what the ledger keeps."""
        return cls(
            version=version.version,
            parent=version.parent,
            kind=version.kind,
            births=list(version.births),
            deaths=list(version.deaths),
            target=version.target,
            created_at=version.created_at,
            chain=version.chain,
        )


class VersionAnswer(VersionOut):
    """A version, and the newest one."""

    weights_version: int
    facts: int = Field(description="how many facts this version knows")


class Activated(VersionOut):
    """The version that a rollback made; it is the newest."""

    weights_version: int
