"""Sampling of a whole batch against transformers, and against the rule written out for one row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from npt_core.engine import SamplingParams
from npt_core.engine.batch_sampling import chosen, kept, penalised
from npt_core.engine.sampler import Sampler

VOCAB, SEEN = 40, (3, 5, 5, 7)

# As in test_sampler: multiples of 1/4.
SCORES = st.lists(st.integers(-40, 40), min_size=2, max_size=30).map(
    lambda quarters: torch.tensor(quarters, dtype=torch.float32) / 4
)
DISTINCT = st.lists(st.integers(-40, 40), min_size=2, max_size=30, unique=True).map(
    lambda quarters: torch.tensor(quarters, dtype=torch.float32) / 4
)
NOBODY = torch.zeros(1, 1, dtype=torch.long)


def scores(rows: int) -> Tensor:
    return 2 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(1))


def distribution(logits: Tensor, params: SamplingParams) -> Tensor:
    """What a row `[vocab]` is drawn from, one step after the other."""
    found = logits.clone()
    for token in set(SEEN):
        found[token] *= params.repetition_penalty if found[token] < 0 else 1 / params.repetition_penalty
    found /= params.temperature
    if 0 < params.top_k < VOCAB:
        found[found < found.topk(params.top_k).values[-1]] = -torch.inf
    ordered, order = found.sort(descending=True, stable=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    dropped = (before >= params.top_p) & (params.top_p < 1)
    dropped[0] = False
    found[order[dropped]] = -torch.inf
    return found.softmax(-1)


@settings(deadline=None)
@given(SCORES, st.integers(1, 40))
def test_top_k_agrees_with_transformers(scores: Tensor, k: int) -> None:
    theirs = TopKLogitsWarper(k)(NOBODY, scores[None])
    assert torch.equal(kept(scores[None], [k], [1.0]), theirs.isfinite())


@settings(deadline=None)
@given(DISTINCT, st.floats(0.01, 0.99))
def test_top_p_agrees_with_transformers(scores: Tensor, p: float) -> None:
    ordered = scores.softmax(-1).sort(descending=True).values.cumsum(-1)
    if (ordered - p).abs().min() < 1e-5:
        return  # On the border the two may round to different sides.
    theirs = TopPLogitsWarper(p)(NOBODY, scores[None])
    assert torch.equal(kept(scores[None], [0], [p]), theirs.isfinite())


@settings(deadline=None)
@given(SCORES, st.floats(0.5, 2.0), st.data())
def test_repetition_penalty_agrees_with_transformers(
    scores: Tensor, penalty: float, data: st.DataObject
) -> None:
    seen = data.draw(st.lists(st.integers(0, len(scores) - 1), min_size=1, max_size=10))
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([seen]), scores[None])
    ours = penalised(scores[None], [SamplingParams(repetition_penalty=penalty)], [seen])
    assert torch.allclose(ours, theirs, rtol=1e-6)


@settings(deadline=None)
@given(SCORES, st.floats(0.01, 1.0))
def test_top_p_keeps_the_likeliest_and_enough(scores: Tensor, p: float) -> None:
    keep = kept(scores[None], [0], [p])[0]
    assert keep[scores.argmax()]
    assert scores.softmax(-1)[keep].sum() >= p - 1e-5


def test_of_equals_at_the_border_the_first_are_kept() -> None:
    equals = torch.tensor([[1.0, 2.0, 1.0, 1.0, 0.0]])
    assert kept(equals, [2], [1.0]).tolist() == [[True, True, True, True, False]]
    assert kept(torch.zeros(1, 8), [0], [0.5]).tolist() == [[True] * 4 + [False] * 4]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.7, top_k=6),
        SamplingParams(temperature=1.3, top_p=0.8),
        SamplingParams(temperature=1.0, top_p=0.01),
        SamplingParams(temperature=1e-300, top_p=1e-300),
        SamplingParams(temperature=2.0, top_k=9, top_p=0.9, repetition_penalty=1.4),
        SamplingParams(temperature=1.0, top_k=VOCAB + 5, repetition_penalty=0.5),
    ],
)
def test_evenly_spaced_draws_give_each_token_its_share(params: SamplingParams) -> None:
    logits, number = scores(1), 20_000
    draws = [(i + 0.5) / number for i in range(number)]
    tokens = torch.cat(
        [
            chosen(logits.expand(500, -1), [params] * 500, [SEEN] * 500, draws[i : i + 500])
            for i in range(0, number, 500)
        ]
    )
    wanted = distribution(logits[0], params)
    shares = torch.bincount(tokens, minlength=VOCAB) / number
    assert not shares[wanted == 0].any()
    torch.testing.assert_close(shares, wanted, rtol=0, atol=2 / number)


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-53])
def test_draws_at_the_ends_give_tokens_that_were_kept(draw: float) -> None:
    params = SamplingParams(temperature=1.0, top_k=3)
    (token,) = chosen(scores(1), [params], [SEEN], [draw]).tolist()
    assert distribution(scores(1)[0], params)[token] > 0


def test_greedy_rows_get_their_best_beside_others() -> None:
    greedy, drawn = SamplingParams(), SamplingParams(temperature=1.0, seed=3)
    careful = SamplingParams(repetition_penalty=3.0)
    logits = scores(4)
    logits[0, 5] = logits[3, 5] = 9.0
    tokens = chosen(logits, [greedy, drawn, greedy, careful], [SEEN] * 4, [0.5]).tolist()
    assert tokens[0] == 5
    assert tokens[2] == int(logits[2].argmax())
    assert tokens[3] == chosen(logits[3:], [careful], [SEEN], []).item() != 5
    assert tokens[1] == chosen(logits[1:2], [drawn], [SEEN], [0.5]).item()


def test_one_seed_draws_the_same_numbers_again() -> None:
    first, again = (Sampler(SamplingParams(temperature=1.0, seed=9), 1) for _ in range(2))
    drawn = [first.draw() for _ in range(5)]
    assert drawn == [again.draw() for _ in range(5)]
    assert len(set(drawn)) == 5
    assert all(0 <= number < 1 for number in drawn)
