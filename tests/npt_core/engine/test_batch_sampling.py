"""Sampling of a whole batch against that of one row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from npt_core.engine import SamplingParams
from npt_core.engine.batch_sampling import chosen
from npt_core.engine.sampler import Sampler, keep_top_k, keep_top_p, on_host, penalise_repetition

VOCAB, SEEN = 40, (3, 5, 5, 7)


def scores(rows: int) -> Tensor:
    return 2 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(1))


def distribution(logits: Tensor, params: SamplingParams) -> Tensor:
    """As `Sampler.choose` draws from."""
    found = penalise_repetition(logits, SEEN, params.repetition_penalty) / params.temperature
    return keep_top_p(keep_top_k(found, params.top_k), params.top_p).softmax(-1)


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
    assert tokens[3] == Sampler(careful).choose(logits[3], SEEN) != 5
    assert tokens[1] == chosen(logits[1:2], [drawn], [SEEN], [0.5]).item()


def test_one_seed_draws_the_same_numbers_again() -> None:
    first, again = (Sampler(SamplingParams(temperature=1.0, seed=9), 1) for _ in range(2))
    drawn = [first.draw() for _ in range(5)]
    assert drawn == [again.draw() for _ in range(5)]
    assert len(set(drawn)) == 5
    assert all(0 <= number < 1 for number in drawn)


def test_rows_that_are_asked_for_come_to_the_host() -> None:
    logits = scores(3)
    first, second, third = on_host(logits, [True, False, True])
    assert second is None
    assert torch.equal(torch.stack([first, third]), logits[[0, 2]])  # type: ignore[list-item]
    assert on_host(logits, [False] * 3) == [None] * 3
