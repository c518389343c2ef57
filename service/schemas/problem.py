"""Errors on the wire: problem details (RFC 9457)."""

from typing import Any

from pydantic import ConfigDict, Field

from service.schemas.common import Out


class FieldProblem(Out):
    """One field of the request that does not fit."""

    field: str = Field(examples=["alpha"])
    reason: str = Field(examples=["Input should be less than or equal to 1"])
    report: dict[str, Any] | None = Field(default=None, description="what was measured of a fact of a batch")


class Problem(Out):
    """What went wrong, for a program (`type`) and for a person (`title`, `detail`)."""

    model_config = ConfigDict(frozen=True)

    type: str = Field(examples=["npt:invalid-request"])
    title: str = Field(examples=["The request does not fit the schema"])
    status: int = Field(examples=[422])
    detail: str | None = None
    errors: list[FieldProblem] | None = None
    report: dict[str, Any] | None = Field(None, description="what was measured before a refusal")
    conflicts: list[str] | None = Field(None, description="ids of the facts that say otherwise")
    asked_version: int | None = Field(None, description="the version that is no longer kept")
    oldest_version: int | None = Field(None, description="the oldest version that is")
    weights_version: int | None = Field(None, description="the newest version")
    request_id: str | None = None
