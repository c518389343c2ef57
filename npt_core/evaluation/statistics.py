"""Means over seeds with 95% confidence intervals, and percentiles."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5% quantiles of Student's t with 1 to 9 degrees of freedom."""


@dataclass(frozen=True)
class Interval:
    """`mean` plus or minus `half`; one value has no interval (`half` is None)."""

    mean: float
    half: float | None
    count: int


def interval(values: Sequence[float]) -> Interval:
    """Student's 95% interval of the mean. Raises ValueError without values."""
    if not values:
        raise ValueError("an interval needs at least one value")
    count = len(values)
    if count == 1:
        return Interval(values[0], None, 1)
    t = _STUDENT[count - 2] if count - 2 < len(_STUDENT) else 1.96
    return Interval(fmean(values), t * stdev(values) / math.sqrt(count), count)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of `values` do not exceed. Raises ValueError if empty."""
    if not values:
        raise ValueError("a percentile needs at least one value")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
