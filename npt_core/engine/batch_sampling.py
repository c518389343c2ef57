"""From logits to tokens for a whole batch, as `sampler` does it row by row, without a look at the device.

A row draws one number from its sequence's own generator, and takes the token at that place of its
distribution. So a seed gives one text, whatever else is in the batch, as far as the logits are the same.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from npt_core.engine.request import SamplingParams
from npt_core.engine.transfer import sent


def chosen(
    logits: Tensor,
    params: Sequence[SamplingParams],
    seen: Sequence[Sequence[int]],
    draws: Sequence[float],
) -> Tensor:
    """The next token `[rows]` for each row of `logits` `[rows, vocab]`, after the tokens `seen`; `draws`
    are numbers from 0 to below 1, for the rows of a temperature above 0 alone.
    """
    scores = _penalised(logits, params, seen)
    best = scores.argmax(-1)
    sampling = [row for row, each in enumerate(params) if each.temperature > 0]
    if not sampling:
        return best
    rows = sent(sampling, torch.int64, logits.device)
    drawn = _drawn(scores.index_select(0, rows), [params[row] for row in sampling], draws)
    return best.index_copy(0, rows, drawn)


def _penalised(logits: Tensor, params: Sequence[SamplingParams], seen: Sequence[Sequence[int]]) -> Tensor:
    places, penalties, vocabulary = list[int](), list[float](), logits.shape[-1]
    for row, (each, tokens) in enumerate(zip(params, seen, strict=True)):
        if each.repetition_penalty != 1.0:
            known = set(tokens)
            places += [row * vocabulary + token for token in known]
            penalties += [each.repetition_penalty] * len(known)
    if not places:
        return logits
    flat, at = logits.flatten(), sent(places, torch.int64, logits.device)
    penalty = sent(penalties, logits.dtype, logits.device)
    old = flat.index_select(0, at)
    return flat.index_copy(0, at, torch.where(old < 0, old * penalty, old / penalty)).view_as(logits)


def _drawn(scores: Tensor, params: Sequence[SamplingParams], draws: Sequence[float]) -> Tensor:
    """Tokens `[rows]` by temperature, top-k, top-p and a number for each row of `scores`."""
    device, vocabulary = scores.device, scores.shape[-1]

    def column(values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
        return sent([[value] for value in values], dtype, device)

    scores = scores / column([each.temperature for each in params])
    ordered, order = scores.sort(dim=-1, descending=True, stable=True)
    last = [(each.top_k if 0 < each.top_k < vocabulary else vocabulary) - 1 for each in params]
    least = ordered.gather(1, column(last, torch.int64))
    ordered = torch.where(ordered < least, -torch.inf, ordered)
    shares = ordered.softmax(-1)
    # The likeliest is kept, whatever top-p is: before it there is nothing.
    before = shares.cumsum(-1) - shares
    shares = torch.where(before < column([each.top_p for each in params]), shares, 0.0)
    reached = shares.cumsum(-1, dtype=torch.float64)
    wanted = column(draws, torch.float64) * reached.select(-1, vocabulary - 1).unsqueeze(-1)
    place = torch.searchsorted(reached, wanted, right=True)
    place = torch.minimum(place, (shares > 0).sum(-1, keepdim=True) - 1)
    tokens: Tensor = order.gather(1, place).flatten()
    return tokens
