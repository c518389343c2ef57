"""How well facts are learned, and what learning them costs."""

from npt_core.evaluation.config import BaselineConfig, CapacityConfig, EvaluationConfig
from npt_core.evaluation.evaluate import Results, evaluate
from npt_core.evaluation.facts import run_facts_evaluation
from npt_core.evaluation.journal import Journal, Key, Record

__all__ = [
    "BaselineConfig",
    "CapacityConfig",
    "EvaluationConfig",
    "Journal",
    "Key",
    "Record",
    "Results",
    "evaluate",
    "run_facts_evaluation",
]
