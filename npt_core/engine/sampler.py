"""What a sequence brings to the choice of its tokens, and the choice for all of a step."""

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from npt_core.engine.batch_sampling import NO_TOKEN, chosen
from npt_core.engine.events import TokenLogprob
from npt_core.engine.request import SamplingParams

Logprobs = tuple[float | None, tuple[TokenLogprob, ...]]
"""Of the chosen token, and of the likeliest ones."""


class Sampler:
    """The draws of one sequence, from a generator of its own, which is on the CPU; and what it has seen."""

    def __init__(self, params: SamplingParams, index: int = 0) -> None:
        self.params = params
        self._generator = torch.Generator()
        self._seen = array("q")
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed + index)

    def draw(self) -> float:
        """A number from 0 to below 1."""
        return float(torch.rand((), dtype=torch.float64, generator=self._generator))

    def seen(self, tokens: Sequence[int]) -> Sequence[int]:
        """`tokens` that a penalty is for, as numbers side by side; one list, which grows, is passed each
        time.
        """
        if self.params.repetition_penalty != 1.0:
            self._seen.extend(tokens[len(self._seen) :])
        return self._seen


def choose_all(logits: Tensor, samplers: Sequence[tuple[Sampler, Sequence[int]]]) -> list[int | None]:
    """The next token for each row of `logits` `[rows, vocab]`, by its sampler, after its tokens; None where
    scores are not finite.

    From a GPU nothing but the tokens is brought back, and waited for once.
    """
    draws = [sampler.draw() for sampler, _ in samplers if sampler.params.temperature > 0]
    seen = [sampler.seen(tokens) for sampler, tokens in samplers]
    tokens: list[int] = chosen(logits, [sampler.params for sampler, _ in samplers], seen, draws).tolist()
    return [None if token == NO_TOKEN else token for token in tokens]


def all_logprobs(
    logits: Tensor, tokens: Sequence[int | None], wanted: Sequence[int | None]
) -> list[Logprobs]:
    """For each row of `logits` `[rows, vocab]`, the log-probability of its token and the `wanted` k
    likeliest; nothing where k or the token is None. From a GPU these rows come in one transfer.
    """
    found: list[Logprobs] = [(None, ())] * len(tokens)
    asked = [
        (row, token, k)
        for row, (token, k) in enumerate(zip(tokens, wanted, strict=True))
        if token is not None and k is not None
    ]
    if not asked:
        return found
    logprobs = logits[[row for row, _, _ in asked]].cpu().log_softmax(-1)
    own = logprobs.gather(1, torch.tensor([[token] for _, token, _ in asked]))[:, 0].tolist()
    # Of equals, which ones topk finds may depend on k: rows are asked for their own.
    best = {k: _likeliest(logprobs, k) for k in {k for _, _, k in asked}}
    for place, (row, _, k) in enumerate(asked):
        found[row] = own[place], best[k][place]
    return found


def _likeliest(logprobs: Tensor, k: int) -> list[tuple[TokenLogprob, ...]]:
    values, tokens = logprobs.topk(min(k, logprobs.shape[-1]))
    rows = zip(tokens.tolist(), values.tolist(), strict=True)
    return [tuple(map(TokenLogprob, *row)) for row in rows]
