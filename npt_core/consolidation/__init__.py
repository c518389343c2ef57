"""Permanent mode: facts become weights."""

from npt_core.consolidation.calibration import Calibration, PlasticityConfig, calibrate
from npt_core.consolidation.consolidator import Consolidator
from npt_core.consolidation.errors import (
    ConsolidationError,
    FactError,
    InvalidRequest,
    NotRecalled,
    UnreadableFact,
)
from npt_core.consolidation.folding import FoldBars, FoldRefused, FoldReport, FoldWriter
from npt_core.consolidation.passes import Passes
from npt_core.consolidation.probes import bare, words
from npt_core.consolidation.request import Consolidated, Question, WriteReport, WriteRequest
from npt_core.consolidation.states import Asked, States, everything
from npt_core.consolidation.steps import Step
from npt_core.consolidation.strength import modulates, modulation_strengths

__all__ = [
    "Asked",
    "Calibration",
    "Consolidated",
    "ConsolidationError",
    "Consolidator",
    "FactError",
    "FoldBars",
    "FoldRefused",
    "FoldReport",
    "FoldWriter",
    "InvalidRequest",
    "NotRecalled",
    "Passes",
    "PlasticityConfig",
    "Question",
    "States",
    "Step",
    "UnreadableFact",
    "WriteReport",
    "WriteRequest",
    "bare",
    "calibrate",
    "everything",
    "modulates",
    "modulation_strengths",
    "words",
]
