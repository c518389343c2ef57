"""Why a fact was not written.

ConsolidationError
├── InvalidRequest      a field is wrong; nothing was tried
└── FactError           tried, and refused; carries the report
    ├── UnreadableFact  the model cannot answer even with the fact in its context
    └── NotRecalled     written on trial, but not recalled or not local; the trial was dropped
"""

from npt_core.consolidation.request import WriteReport


class ConsolidationError(Exception):
    """Nothing was published."""


class InvalidRequest(ConsolidationError):
    """`field` of the request is wrong, for `reason`."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class FactError(ConsolidationError):
    """The fact was refused; `report` says what was measured."""

    def __init__(self, reason: str, report: WriteReport) -> None:
        super().__init__(reason)
        self.reason = reason
        self.report = report


class UnreadableFact(FactError):
    """The model cannot read the fact, even in its context."""


class NotRecalled(FactError):
    """The fact was not recalled, or disturbed others, on every rung of the ladder."""
