"""Batched decoding of token ids, greedy or sampled, for self-study and for evaluation.

Serving has its own engine; this one takes a fixed batch and returns when every row has ended.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

MIN_SHARED = 8
"""Tokens that prompts must share before reading them once is worth a pass of its own."""


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


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    weights_version: int | Sequence[int] | None = None,
) -> list[list[int]]:
    """The new ids of each prompt, in order, without the end token; a version for all or each."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    results: list[list[int]] = [[] for _ in prompts]
    generator = torch.Generator(next(model.parameters()).device).manual_seed(decoding.seed)
    for start in range(0, len(order), decoding.batch_size):
        chunk = order[start : start + decoding.batch_size]
        versions = (
            torch.tensor([weights_version[i] for i in chunk])
            if isinstance(weights_version, Sequence)
            else weights_version
        )
        answers = _batch(model, [prompts[i] for i in chunk], decoding, generator, versions)
        for index, answer in zip(chunk, answers, strict=True):
            results[index] = answer
    return results


@torch.inference_mode()
def _batch(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    generator: torch.Generator,
    weights_version: int | Tensor | None,
) -> list[list[int]]:
    cache, rows = DynamicCache(), list(range(len(prompts)))
    shared = 0 if isinstance(weights_version, Tensor) else _shared_prefix(prompts)
    if shared:  # a context that all prompts begin with is read once
        start = _on_device(model, torch.tensor([prompts[0][:shared]]))
        model(input_ids=start, past_key_values=cache, use_cache=True, weights_version=weights_version)
        cache.batch_repeat_interleave(len(prompts))
    ids, mask = (_on_device(model, t) for t in left_padded([p[shared:] for p in prompts]))
    mask = torch.cat([mask.new_ones(len(prompts), shared), mask], dim=1)
    answers: list[list[int]] = [[] for _ in prompts]
    for _ in range(decoding.max_new_tokens):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            weights_version=weights_version,
        ).logits[:, -1]
        tokens = _choose(logits.float(), decoding, generator)
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


def _shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many first tokens all prompts share, one of each left; 0 where sharing would not pay."""
    rows = [list(p) for p in prompts]
    first, last = min(rows), max(rows)  # all that lies between them begins as both do
    limit = min(len(p) for p in prompts) - 1
    length = next((k for k in range(limit) if first[k] != last[k]), limit)
    return length if len(prompts) > 1 and length >= MIN_SHARED else 0


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


def _choose(logits: Tensor, decoding: Decoding, generator: torch.Generator) -> Tensor:
    if decoding.temperature == 0:
        return logits.argmax(-1)
    weights, ids = torch.softmax(logits / decoding.temperature, -1).sort(-1, descending=True)
    outside = weights.cumsum(-1) - weights >= decoding.top_p
    drawn = torch.multinomial(weights.masked_fill(outside, 0.0), 1, generator=generator)
    return ids.gather(-1, drawn)[:, 0]
