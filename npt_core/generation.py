"""Batched decoding of token ids, greedy or sampled, for self-study and for evaluation.

Serving has its own engine; this one takes a fixed batch and returns when every row has ended.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

SEED_STRIDE = 1_000_003
"""Between the seeds of two decodings, so that the seeds of their prompts do not meet."""
MIN_SHARED = 8
"""Tokens that prompts must share before reading them once is worth a pass of its own."""
LIKELIEST = 64
"""Tokens that are looked at first for a nucleus: sorting them takes a fraction of sorting all."""


@dataclass(frozen=True)
class Decoding:
    """When a row ends and how the next token is chosen; temperature 0 is greedy, `top_p` the
    nucleus.
    """

    max_new_tokens: int
    end_ids: Collection[int]
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 64

    def seed_of(self, number: int) -> int:
        """What the prompt of that number draws with, unless it is told."""
        return self.seed * SEED_STRIDE + number


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    weights_version: int | Sequence[int] | None = None,
    groups: Sequence[int] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[list[int]]:
    """The new ids of each prompt, in order, without the end token; a version for all or each.

    What the prompts of a group begin with is read once; without `groups`, and with one version, they are
    one group. Each prompt draws with the seed of `seeds`, by default `decoding.seed` and its number, so
    what is drawn does not depend on the batch.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    draws = [seeds[i] if seeds else decoding.seed_of(i) for i in range(len(prompts))]
    results: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), decoding.batch_size):
        chunk = order[start : start + decoding.batch_size]
        versions = (
            torch.tensor([weights_version[i] for i in chunk])
            if isinstance(weights_version, Sequence)
            else weights_version
        )
        grouped = _common_group([prompts[i] for i in chunk], versions)
        if groups is not None:
            grouped = [groups[i] for i in chunk]
        uniforms = uniforms_of([draws[i] for i in chunk], decoding)
        answers = _batch(model, [prompts[i] for i in chunk], decoding, uniforms, versions, grouped)
        for index, answer in zip(chunk, answers, strict=True):
            results[index] = answer
    return results


def uniforms_of(seeds: Sequence[int], decoding: Decoding) -> Tensor:
    """A number in [0, 1) for every row and step; none where decoding is greedy."""
    if decoding.temperature == 0:
        return torch.empty(len(seeds), 0)
    steps = decoding.max_new_tokens
    return torch.stack([torch.rand(steps, generator=torch.Generator().manual_seed(s)) for s in seeds])


@torch.inference_mode()
def _batch(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    uniforms: Tensor,
    weights_version: int | Tensor | None,
    groups: Sequence[int] | None,
) -> list[list[int]]:
    cache, rows = DynamicCache(), list(range(len(prompts)))
    shared, read = [0] * len(prompts), torch.zeros(len(prompts), 0, dtype=torch.int64)
    if groups is not None:
        shared, read = _read_shared(model, prompts, groups, cache, weights_version)
    rest = left_padded([p[k:] for p, k in zip(prompts, shared, strict=True)])
    ids, mask = (_on_device(model, t) for t in rest)
    mask = torch.cat([read.to(mask), mask], dim=1)
    answers: list[list[int]] = [[] for _ in prompts]
    for step in range(decoding.max_new_tokens):
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=_positions(mask)[:, -ids.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            weights_version=weights_version,
        ).logits[:, -1]
        tokens = choose(logits.float(), decoding, uniforms[rows, step : step + 1])
        chosen = tokens.tolist()
        going = [k for k, token in enumerate(chosen) if token not in decoding.end_ids]
        for k in going:
            answers[rows[k]].append(chosen[k])
        if not going:
            break
        if len(going) < len(rows):  # ended rows leave the batch, so that the last ones run fast
            keep = torch.tensor(going, device=ids.device)
            cache.batch_select_indices(keep)
            tokens, mask, rows = tokens[keep], mask[keep], [rows[k] for k in going]
            if isinstance(weights_version, Tensor):
                weights_version = weights_version[keep.cpu()]
        ids = tokens[:, None]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
    return answers


def _positions(mask: Tensor) -> Tensor:
    """The position of every token that `mask` does not hide."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _common_group(prompts: Sequence[Sequence[int]], weights_version: int | Tensor | None) -> list[int] | None:
    """All prompts as one group, where reading their beginning once pays."""
    if isinstance(weights_version, Tensor) or len(prompts) < 2 or shared_prefix(prompts) < MIN_SHARED:
        return None
    return [0] * len(prompts)


def _read_shared(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    groups: Sequence[int],
    cache: DynamicCache,
    weights_version: int | Tensor | None,
) -> tuple[list[int], Tensor]:
    """Fills `cache` with what the prompts of each group begin with; how many tokens of each prompt that is,
    and their mask `[B, T]`.
    """
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    lengths = {group: shared_prefix([prompts[r] for r in rows]) for group, rows in members.items()}
    beginnings = [prompts[rows[0]][: lengths[group]] for group, rows in members.items()]
    ids, mask = (_on_device(model, t) for t in left_padded(beginnings))
    model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=_positions(mask),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        weights_version=weights_version,
    )
    places = {group: place for place, group in enumerate(members)}
    chosen = torch.tensor([places[group] for group in groups], device=ids.device)
    cache.batch_select_indices(chosen)
    return [lengths[group] for group in groups], mask[chosen]


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many first tokens all prompts share, one of each left."""
    rows = [list(p) for p in prompts]
    first, last = min(rows), max(rows)  # all that lies between them begins as both do
    limit = min(len(p) for p in prompts) - 1
    return next((k for k in range(limit) if first[k] != last[k]), limit)


def _on_device(model: nn.Module, tensor: Tensor) -> Tensor:
    return tensor.to(next(model.parameters()).device)


def left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask `[B, T]`, padded with 0 on the left."""
    longest = max(len(p) for p in prompts)
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


def right_padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Ids `[B, T]` padded with 0 on the right: under a causal mask no row sees its padding."""
    longest = max(len(row) for row in rows)
    return torch.tensor([list(row) + [0] * (longest - len(row)) for row in rows])


def choose(logits: Tensor, decoding: Decoding, uniforms: Tensor) -> Tensor:
    """The next token of each row of `logits` `[B, vocab]`; `uniforms` `[B, 1]` pick from the nucleus."""
    if decoding.temperature == 0:
        return logits.argmax(-1)
    probabilities = torch.softmax(logits / decoding.temperature, -1)
    for count in (LIKELIEST, logits.shape[-1]):
        weights, ids = probabilities.topk(min(count, logits.shape[-1]), -1)
        total = weights.cumsum(-1)
        if bool((total[:, -1] >= decoding.top_p).all()):
            break
    inside = weights.masked_fill(total - weights >= decoding.top_p, 0.0).cumsum(-1)
    place = torch.searchsorted(inside, uniforms.to(inside) * inside[:, -1:], right=True)
    return ids.gather(-1, place.clamp(max=ids.shape[-1] - 1))[:, 0]
