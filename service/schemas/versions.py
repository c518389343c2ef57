"""The /versions resource."""

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from npt_core.consolidation import FoldBars
from service.commands import Folded
from service.ledger import Version, VersionKind
from service.schemas.common import In, Out

BARS = FoldBars()
MAX_FOLD = 1000
"""Facts of one fold: each is asked about again, which takes a third of a second."""


class VersionOut(Out):
    """One step of history."""

    version: int
    parent: int | None
    kind: VersionKind
    births: list[str] = Field(description="ids of the facts that this version began to know")
    deaths: list[str] = Field(description="ids of the facts that it no longer knows")
    target: int | None = Field(description="rollback: the version whose facts came back")
    created_at: str
    fold: str | None = Field(description="SHA-256 of what is folded into the base weights, if anything is")
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
            fold=version.fold,
            chain=version.chain,
        )


class VersionAnswer(VersionOut):
    """A version, and the newest one."""

    weights_version: int
    facts: int = Field(description="how many facts this version knows")
    folded: list[str] = Field(description="ids of those that are in its base weights")


class Activated(VersionOut):
    """The version that a rollback made; it is the newest."""

    weights_version: int


_Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class FoldIn(In):
    """Which facts to fold into the base weights, and what the fold must keep."""

    facts: list[Annotated[str, StringConstraints(min_length=1, max_length=64)]] | None = Field(
        None,
        min_length=1,
        max_length=MAX_FOLD,
        description="ids, beside what is folded already; absent: every fact that has columns",
        examples=[["fact_3391b964df940d8b"]],
    )
    min_recall: _Share = Field(BARS.recall, description="of folded facts, and of others beside them")
    min_locality: _Share = Field(BARS.locality, description="share of unrelated answers that must stay")
    max_drift: _Share = Field(
        BARS.drift, description="share of its energy by which the output of ordinary text may move"
    )
    dry_run: bool = Field(False, description="measure everything, write nothing")


class FoldedOut(VersionOut):
    """The version that a fold made; it is the newest."""

    weights_version: int
    folded: list[str] = Field(description="ids of all facts that are in the base weights now")
    report: dict[str, Any] | None = Field(description="what was measured; null where an answer is repeated")

    @classmethod
    def made(cls, folded: Folded) -> "FoldedOut":
        """What the writer did."""
        return cls(
            **VersionOut.of(folded.version).model_dump(),
            weights_version=folded.version.version,
            folded=list(folded.facts),
            report=None if folded.report is None else dict(folded.report),
        )


class FoldRehearsed(Out):
    """A dry run: nothing was written."""

    dry_run: bool = True
    weights_version: int
    folded: list[str] = Field(description="ids of all facts that would be in the base weights")
    report: dict[str, Any]

    @classmethod
    def of(cls, folded: Folded) -> "FoldRehearsed":
        """What the writer measured."""
        return cls(
            weights_version=folded.version.version,
            folded=list(folded.facts),
            report=dict(folded.report or {}),
        )


class Side(Out):
    """What one direction of a difference amounts to."""

    facts: list[str] = Field(description="ids")
    columns: int
    bytes: int
    layers: list[int]


class VersionDiff(Out):
    """From version `before` to version `after`, whichever is newer."""

    before: int
    after: int
    born: Side = Field(description="known to `after` alone")
    died: Side = Field(description="known to `before` alone")
    folded: list[str] = Field(description="ids of facts that only `after` has in its base weights")
    unfolded: list[str] = Field(description="ids of facts that only `before` has in its base weights")
    weights_version: int
