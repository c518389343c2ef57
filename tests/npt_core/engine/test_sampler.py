import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from npt_core.engine.batch_sampling import chosen
from npt_core.engine.request import PENALTIES, SamplingParams
from npt_core.engine.sampler import (
    Sampler,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
    top_logprobs,
)

# Multiples of 1/4 in a small range: ties happen, and no probability is lost to rounding.
SCORES = st.lists(st.integers(-40, 40), min_size=2, max_size=30).map(
    lambda quarters: torch.tensor(quarters, dtype=torch.float32) / 4
)
DISTINCT = st.lists(st.integers(-40, 40), min_size=2, max_size=30, unique=True).map(
    lambda quarters: torch.tensor(quarters, dtype=torch.float32) / 4
)


@given(SCORES, st.integers(1, 40))
def test_top_k_agrees_with_transformers(scores: Tensor, k: int) -> None:
    theirs = TopKLogitsWarper(k)(torch.zeros(1, 1, dtype=torch.long), scores[None])[0]
    assert torch.equal(keep_top_k(scores, k), theirs)


@given(DISTINCT, st.floats(0.01, 0.99))
def test_top_p_agrees_with_transformers(scores: Tensor, p: float) -> None:
    ordered = scores.softmax(-1).sort(descending=True).values.cumsum(-1)
    if (ordered - p).abs().min() < 1e-5:
        return  # On the border the two may round to different sides.
    theirs = TopPLogitsWarper(p)(torch.zeros(1, 1, dtype=torch.long), scores[None])[0]
    assert torch.equal(keep_top_p(scores, p), theirs)


@given(SCORES, st.floats(0.5, 2.0), st.data())
def test_repetition_penalty_agrees_with_transformers(
    scores: Tensor, penalty: float, data: st.DataObject
) -> None:
    seen = data.draw(st.lists(st.integers(0, len(scores) - 1), min_size=1, max_size=10))
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([seen]), scores[None])[0]
    assert torch.allclose(penalise_repetition(scores, seen, penalty), theirs, rtol=1e-6)


@given(SCORES, st.floats(0.01, 1.0))
def test_top_p_keeps_the_likeliest_and_enough(scores: Tensor, p: float) -> None:
    kept = keep_top_p(scores, p).isfinite()
    assert kept[scores.argmax()]
    assert scores.softmax(-1)[kept].sum() >= p - 1e-5


@given(SCORES, st.floats(0.1, 3.0), st.integers(0, 5), st.floats(0.05, 1.0), st.integers(0, 2**63 - 1))
def test_same_seed_same_token_and_always_a_kept_one(
    scores: Tensor, temperature: float, k: int, p: float, seed: int
) -> None:
    params = SamplingParams(temperature=temperature, top_k=k, top_p=p, seed=seed)
    token = Sampler(params).choose(scores, ())
    assert Sampler(params).choose(scores, ()) == token
    assert keep_top_p(keep_top_k(scores / temperature, k), p)[token].isfinite()


@given(SCORES)
def test_temperature_zero_is_greedy(scores: Tensor) -> None:
    token = Sampler(SamplingParams(temperature=0)).choose(scores, ())
    assert scores[token] == scores.max()


@pytest.mark.parametrize("least", [{"temperature": 5e-324}, {"temperature": 1.0, "top_p": 5e-324}])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_least_numbers_draw_the_likeliest(least: dict[str, float], penalty: float) -> None:
    """They overflowed, and the step failed for everybody in it."""
    scores = torch.tensor([-1e3, 2e3, 1e3, 0.0])
    params = SamplingParams(**least, repetition_penalty=penalty)
    assert Sampler(params).choose(scores, (3,)) == 1
    assert chosen(scores[None], [params], [(3,)], [0.5]).tolist() == [1]


def test_draws_follow_the_distribution() -> None:
    sampler = Sampler(SamplingParams(temperature=1.0, seed=0))
    probabilities = torch.tensor([0.5, 0.3, 0.2])
    draws = torch.tensor([sampler.choose(probabilities.log(), ()) for _ in range(4000)])
    counted = torch.bincount(draws, minlength=3) / len(draws)
    assert torch.allclose(counted, probabilities, atol=0.03)


@given(SCORES, st.integers(0, 5))
def test_logprobs_are_sorted_and_sum_to_at_most_one(scores: Tensor, k: int) -> None:
    own, best = top_logprobs(scores, 0, k)
    assert own == pytest.approx(float(scores.log_softmax(-1)[0]))
    values = [entry.logprob for entry in best]
    assert values == sorted(values, reverse=True)
    assert len(values) == min(k, len(scores))
    assert top_logprobs(scores, 0, None) == (None, ())
