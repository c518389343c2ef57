"""From logits to tokens for a whole batch: penalty, temperature, top-k, top-p, draw; as transformers orders
them, without a look at the device.

A row draws one number from its sequence's own generator, and takes the token at that place of its
distribution. Nothing is summed across rows, and what one row asks for is no work on another: so a seed
gives one text, whatever else is in the batch, as far as the logits are the same.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from npt_core.engine.request import SamplingParams
from npt_core.engine.transfer import sent

NO_TOKEN = -1
"""Instead of a token where the best score is no finite number."""


def chosen(
    logits: Tensor,
    params: Sequence[SamplingParams],
    seen: Sequence[Sequence[int]],
    draws: Sequence[float],
) -> Tensor:
    """The next token `[rows]` for each row of `logits` `[rows, vocab]`, or `NO_TOKEN`. `seen` are the tokens
    that a row's repetition penalty is for; `draws` are numbers from 0 to below 1, for the rows of a
    temperature above 0 alone.
    """
    scores = penalised(logits, params, seen)
    best = scores.argmax(-1, keepdim=True)
    # The maximum of a row with a NaN is that one.
    sound = scores.gather(1, best)[:, 0].isfinite()
    tokens = best[:, 0]
    sampling = [row for row, each in enumerate(params) if each.temperature > 0]
    if sampling:
        rows = sent(sampling, torch.int64, logits.device)
        warm = [params[row] for row in sampling]
        shares = distribution(scores.index_select(0, rows), warm)
        tokens = tokens.index_copy(0, rows, drawn(shares, _column(draws, shares, torch.float64)))
    return torch.where(sound, tokens, NO_TOKEN)


def penalised(logits: Tensor, params: Sequence[SamplingParams], seen: Sequence[Sequence[int]]) -> Tensor:
    """`logits` `[rows, vocab]`, those of `seen` tokens divided by the row's penalty where positive, times it
    elsewhere.
    """
    rows = [row for row, each in enumerate(params) if each.repetition_penalty != 1.0 and len(seen[row])]
    if not rows:
        return logits
    known = [np.asarray(seen[row], dtype=np.int64) + row * logits.shape[-1] for row in rows]
    factors = np.repeat([params[row].repetition_penalty for row in rows], [len(each) for each in known])
    at = sent(np.concatenate(known), torch.int64, logits.device)
    factor = sent(factors, logits.dtype, logits.device)
    flat = logits.flatten()
    old = flat.index_select(0, at)
    # A token that was seen twice is written twice, the same both times.
    return flat.index_copy(0, at, torch.where(old < 0, old * factor, old / factor)).view_as(logits)


def distribution(scores: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """What is drawn from, `[rows, vocab]`, up to a factor for each row: by temperature, and zero where top-k
    and top-p keep nothing of `scores`.
    """
    scores = scores / _column([each.temperature for each in params], scores, scores.dtype)
    shares = scores.softmax(-1)
    vocabulary = scores.shape[-1]
    cut = [row for row, each in enumerate(params) if 0 < each.top_k < vocabulary or each.top_p < 1]
    if not cut:
        return shares
    rows = sent(cut, torch.int64, scores.device)
    keep = kept(
        scores.index_select(0, rows),
        [params[row].top_k for row in cut],
        [params[row].top_p for row in cut],
    )
    return shares.index_copy(0, rows, shares.index_select(0, rows) * keep)


def kept(scores: Tensor, top_k: Sequence[int], top_p: Sequence[float]) -> Tensor:
    """Which of `scores` `[rows, vocab]` remain: the `top_k` highest of a row, and those that equal the last
    of them (0: all); of these the fewest whose probability reaches `top_p`, among equals the first.
    """
    vocabulary = scores.shape[-1]
    rising = _sorted(scores)
    ordered = rising.flip(-1)
    last = [(k if 0 < k < vocabulary else vocabulary) - 1 for k in top_k]
    lowest = ordered.gather(1, _column(last, scores, torch.int64))
    high = vocabulary - torch.searchsorted(rising, lowest)
    reached = ordered.softmax(-1).cumsum(-1)
    # A sum that rounds to 1 before its last summands must not cost a row without top-p any of them.
    part = _column([p if p < 1 else 2.0 for p in top_p], scores, reached.dtype)
    enough = part * reached.gather(1, (high - 1).clamp(min=0))
    # The likeliest is kept, whatever top-p is.
    count = torch.minimum(torch.searchsorted(reached, enough) + 1, high).clamp(min=1)
    least = ordered.gather(1, count - 1)
    equals = count - vocabulary + torch.searchsorted(rising, least, right=True)
    equal = scores == least
    return (scores > least) | (equal & (equal.cumsum(-1, dtype=torch.int32) <= equals))


def drawn(shares: Tensor, draws: Tensor) -> Tensor:
    """The token `[rows]` at the place `draws` `[rows, 1]`, from 0 to below 1, of `shares` `[rows, vocab]`."""
    reached = shares.cumsum(-1, dtype=torch.float64)
    total = reached[:, -1:]
    # Below the total, also rounded: where the sum passes it, there is a share.
    wanted = torch.minimum(draws * total, total.nextafter(torch.zeros_like(total)))
    tokens: Tensor = torch.searchsorted(reached, wanted, right=True)[:, 0]
    return tokens


def _sorted(scores: Tensor) -> Tensor:
    """The values of each row of `scores`, the lowest first."""
    if scores.is_cuda:
        return scores.sort(dim=-1).values
    # Ten times faster than the sort of torch, which sorts places along.
    return torch.from_numpy(np.sort(scores.numpy(), axis=-1))


def _column(values: Sequence[float], like: Tensor, dtype: torch.dtype) -> Tensor:
    """`values` as `[rows, 1]` beside `like`."""
    return sent([[value] for value in values], dtype, like.device)
