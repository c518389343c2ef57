"""How fast the engine is, beside what else could serve the same weights."""

from npt_core.bench.bench import run_bench

__all__ = ["run_bench"]
