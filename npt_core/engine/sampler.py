"""From logits to tokens: penalty, temperature, top-k, top-p, draw; as transformers orders it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from npt_core.engine.batch_sampling import chosen
from npt_core.engine.events import TokenLogprob
from npt_core.engine.request import SamplingParams


class Sampler:
    """Chooses the tokens of one sequence, with a generator of its own, which is on the CPU."""

    def __init__(self, params: SamplingParams, index: int = 0) -> None:
        self.params = params
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed + index)

    @property
    def greedy(self) -> bool:
        """Whether the choice is the highest of the model's own scores."""
        return self.params.temperature == 0 and self.params.repetition_penalty == 1.0

    def draw(self) -> float:
        """A number from 0 to below 1."""
        return float(torch.rand((), dtype=torch.float64, generator=self._generator))

    def choose(self, logits: Tensor, seen: Sequence[int]) -> int:
        """The next token for `logits` `[vocab]`, after the tokens `seen` (prompt and answer)."""
        scores = penalise_repetition(logits, seen, self.params.repetition_penalty)
        if self.params.temperature == 0:
            return int(scores.argmax())
        scores = scores / self.params.temperature
        scores = keep_top_p(keep_top_k(scores, self.params.top_k), self.params.top_p)
        draw = torch.multinomial(scores.softmax(-1), 1, generator=self._generator)
        return int(draw)


def choose_all(logits: Tensor, samplers: Sequence[tuple[Sampler, Sequence[int]]]) -> list[int]:
    """The next token for each row of `logits` `[rows, vocab]`, by its sampler, after its tokens.

    From a GPU nothing but the tokens is brought back, and waited for once. A seed gives other texts there
    than on a CPU, where each row draws as transformers does.
    """
    if logits.is_cuda:
        draws = [sampler.draw() for sampler, _ in samplers if sampler.params.temperature > 0]
        params, seen = [sampler.params for sampler, _ in samplers], [tokens for _, tokens in samplers]
        tokens: list[int] = chosen(logits, params, seen, draws).tolist()
        return tokens
    best: list[int] = logits.argmax(-1).tolist()
    return [
        likeliest if sampler.greedy else sampler.choose(row, seen)
        for likeliest, row, (sampler, seen) in zip(best, logits, samplers, strict=True)
    ]


def on_host(logits: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
    """Each row of `logits` `[rows, vocab]` that is `wanted`, on the CPU; one transfer for all."""
    rows = [row for row, each in enumerate(wanted) if each]
    found: list[Tensor | None] = [None] * len(wanted)
    if rows:
        for row, scores in zip(rows, logits[rows].cpu(), strict=True):
            found[row] = scores
    return found


def penalise_repetition(scores: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    """Scores `[vocab]` of `seen` tokens divided by `penalty` where positive, times it elsewhere."""
    if penalty == 1.0 or not seen:
        return scores
    ids = torch.tensor(sorted(set(seen)))
    old = scores[ids]
    return scores.index_copy(0, ids, torch.where(old < 0, old * penalty, old / penalty))


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    """All but the k highest scores `[vocab]` (and ties with the last) at minus infinity."""
    if k == 0 or k >= scores.shape[-1]:
        return scores
    return scores.masked_fill(scores < scores.topk(k).values[-1], float("-inf"))


def keep_top_p(scores: Tensor, p: float) -> Tensor:
    """The fewest highest scores `[vocab]` whose probability reaches `p`; the rest at -inf."""
    if p >= 1.0:
        return scores
    ordered, order = scores.sort(descending=True, stable=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    dropped = before >= p
    dropped[0] = False
    return scores.masked_fill(torch.zeros_like(dropped).scatter(0, order, dropped), float("-inf"))


def top_logprobs(
    logits: Tensor | None, token_id: int, k: int | None
) -> tuple[float | None, tuple[TokenLogprob, ...]]:
    """Log-probability of `token_id` under `logits` `[vocab]`, and the k likeliest tokens."""
    if k is None or logits is None:
        return None, ()
    logprobs = logits.log_softmax(-1)
    best = logprobs.topk(min(k, logprobs.shape[-1]))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return float(logprobs[token_id]), tuple(TokenLogprob(token, value) for token, value in pairs)
