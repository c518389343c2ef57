from __future__ import annotations

import pytest

from npt_core.evaluation.statistics import interval, percentile


def test_interval_is_students() -> None:
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half == pytest.approx(4.303 / 3**0.5)


def test_one_value_has_no_interval() -> None:
    assert interval([0.5]).half is None


def test_equal_values_have_a_width_of_zero() -> None:
    assert interval([0.25] * 20).half == 0.0


@pytest.mark.parametrize(("share", "expected"), [(0.5, 2), (0.95, 4), (0.0, 1), (1.0, 4)])
def test_percentile_is_a_value_that_occurred(share: float, expected: float) -> None:
    assert percentile([4, 1, 3, 2], share) == expected


def test_nothing_has_no_statistics() -> None:
    with pytest.raises(ValueError, match="at least one"):
        interval([])
    with pytest.raises(ValueError, match="at least one"):
        percentile([], 0.5)
