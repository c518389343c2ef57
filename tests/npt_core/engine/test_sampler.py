from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from npt_core.engine.request import PENALTIES, SamplingParams
from npt_core.engine.sampler import Sampler, all_logprobs, choose_all

# Multiples of 1/4 in a small range: ties happen, and no probability is lost to rounding.
SCORES = st.lists(st.integers(-40, 40), min_size=2, max_size=30).map(
    lambda quarters: torch.tensor(quarters, dtype=torch.float32) / 4
)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 6, 40, 3000]),
    top_p=st.sampled_from([0.01, 0.5, 0.95, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    seed=st.integers(0, 99),
    logprobs=st.sampled_from([None, 0, 1, 5, 20]),
)


def choose(scores: Tensor, params: SamplingParams, seen: tuple[int, ...] = ()) -> int | None:
    return choose_all(scores[None], [(Sampler(params), seen)])[0]


@settings(deadline=None)
@given(SCORES, st.floats(0.1, 3.0), st.integers(0, 5), st.floats(0.05, 1.0), st.integers(0, 2**63 - 1))
def test_same_seed_same_token(scores: Tensor, temperature: float, k: int, p: float, seed: int) -> None:
    params = SamplingParams(temperature=temperature, top_k=k, top_p=p, seed=seed)
    assert choose(scores, params) == choose(scores, params)


@settings(deadline=None)
@given(SCORES)
def test_temperature_zero_is_greedy(scores: Tensor) -> None:
    token = choose(scores, SamplingParams(temperature=0))
    assert token is not None
    assert scores[token] == scores.max()


@pytest.mark.parametrize("least", [{"temperature": 5e-324}, {"temperature": 1.0, "top_p": 5e-324}])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_least_numbers_draw_the_likeliest(least: dict[str, float], penalty: float) -> None:
    """They overflowed, and the step failed for everybody in it."""
    scores = torch.tensor([-1e3, 2e3, 1e3, 0.0])
    assert choose(scores, SamplingParams(**least, repetition_penalty=penalty), (3,)) == 1  # type: ignore[arg-type]


def test_draws_follow_the_distribution() -> None:
    sampler = Sampler(SamplingParams(temperature=1.0, seed=0))
    probabilities = torch.tensor([[0.5, 0.3, 0.2]])
    draws = torch.tensor([choose_all(probabilities.log(), [(sampler, ())]) for _ in range(4000)])
    counted = torch.bincount(draws[:, 0], minlength=3) / len(draws)
    assert torch.allclose(counted, probabilities[0], atol=0.03)


@settings(deadline=None, max_examples=60)
@given(st.lists(PARAMS, min_size=1, max_size=9), st.sampled_from([5, 16, 63, 2048, 2051]), st.data())
def test_company_changes_neither_tokens_nor_probabilities(
    params: list[SamplingParams], vocabulary: int, data: st.DataObject
) -> None:
    """Three tokens each, all rows at once, and every row by itself: the same, bit by bit."""
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    # Coarse scores, as of bfloat16: the borders of top-k and top-p lie among equals.
    steps = [(8 * torch.randn(len(params), vocabulary, generator=draw)).round() / 4 for _ in range(3)]
    together = _answers(params, steps)
    for row, each in enumerate(params):
        assert _answers([each], [logits[row : row + 1] for logits in steps])[0] == together[row]


def _answers(params: list[SamplingParams], steps: list[Tensor]) -> list[list[Any]]:
    samplers = [(Sampler(each), [2, 3]) for each in params]
    found: list[list[Any]] = [[] for _ in params]
    for logits in steps:
        tokens = choose_all(logits, samplers)
        told = all_logprobs(logits, tokens, [each.logprobs for each in params])
        for own, (_, seen), token, likely in zip(found, samplers, tokens, told, strict=True):
            assert token is not None
            own.append((token, likely))
            seen.append(token)
    return found


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_row_that_is_not_finite_gives_no_token_and_spares_the_others(bad: float, temperature: float) -> None:
    logits = torch.zeros(3, 8)
    logits[:, 5] = 100.0
    logits[1, 2] = bad
    params = SamplingParams(temperature=temperature, top_k=4, top_p=0.9, seed=1)
    tokens = choose_all(logits, [(Sampler(params), ()) for _ in range(3)])
    assert tokens == [5, None, 5]
    told = all_logprobs(logits, tokens, [1, 1, 1])
    assert [len(best) for _, best in told] == [1, 0, 1]


@settings(deadline=None)
@given(SCORES, st.integers(0, 5))
def test_logprobs_are_sorted_and_sum_to_at_most_one(scores: Tensor, k: int) -> None:
    ((own, best),) = all_logprobs(scores[None], [0], [k])
    assert own == pytest.approx(float(scores.log_softmax(-1)[0]))
    values = [entry.logprob for entry in best]
    assert values == sorted(values, reverse=True)
    assert len(values) == min(k, len(scores))
    assert all_logprobs(scores[None], [0], [None]) == [(None, ())]


def test_penalty_is_for_all_tokens_so_far() -> None:
    sampler, seen = Sampler(SamplingParams(repetition_penalty=2.0)), [0]
    logits = torch.tensor([[9.0, 8.0, 7.0, 6.0]])
    for expected in (1, 2, 3, 0):  # at last all of them are halved
        assert choose_all(logits, [(sampler, seen)]) == [expected]
        seen.append(expected)
