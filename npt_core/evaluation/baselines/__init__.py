"""Other ways to teach a model facts, measured on the same checkpoint, facts and questions."""

from npt_core.evaluation.baselines.comparison import compare_baselines

__all__ = ["compare_baselines"]
