"""What was measured, for people: a text table, JSON, a plot, and a page of documentation."""

from npt_core.evaluation.reports.files import write_reports
from npt_core.evaluation.reports.render import as_markdown, as_text

__all__ = ["as_markdown", "as_text", "write_reports"]
