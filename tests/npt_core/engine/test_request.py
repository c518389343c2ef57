from typing import Any

import pytest

from npt_core.engine import InvalidSampling, SamplingParams


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("top_k", -1),
        ("seed", -1),
        ("seed", 2**63),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-320),
        ("repetition_penalty", 1e3),
        ("logprobs", -1),
        ("n", 0),
    ],
)
def test_parameter_out_of_range_is_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidSampling) as caught:
        SamplingParams(**{field: value})
    assert caught.value.field == field
