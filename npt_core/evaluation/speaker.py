"""Answers by real greedy generation, and models under edit."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from npt_core.bank import Site
from npt_core.consolidation.probes import bare
from npt_core.generation import Decoding, generate
from npt_core.model import NPTForCausalLM
from npt_core.prompts import PromptTemplate

Edits = Mapping[tuple[int, Site], Tensor]
"""What is added to a matrix of a layer, `[out, in]`."""


@dataclass(frozen=True)
class Speaker:
    """One model that answers prompts."""

    model: NPTForCausalLM
    template: PromptTemplate
    batch: int = 64
    max_new_tokens: int = 24

    def answers(
        self,
        prompts: Sequence[str],
        version: int | Sequence[int] | None = None,
        contexts: Sequence[Sequence[str]] | None = None,
    ) -> list[str]:
        """The bare greedy answer to each prompt, with the sentences of its context before it."""
        given = contexts or [()] * len(prompts)
        template = self.template
        texts = [template.with_context(p, c) for p, c in zip(prompts, given, strict=True)]
        decoding = Decoding(self.max_new_tokens, template.eos_token_ids, batch_size=self.batch)
        rows = generate(self.model, [template.encode(t) for t in texts], decoding, version)
        return [bare(template.decode(ids)) for ids in rows]


@contextmanager
def edited(model: NPTForCausalLM, edits: Edits) -> Iterator[None]:
    """Within the block `model` has `edits` added to its weights, each rounded once.

    The parameters are replaced, not written to: a model that shares them is left alone, and leaving
    the block is exact.
    """
    mlps = {at: model.model.layers[at[0]].mlp for at in edits}
    before = {at: getattr(mlp, at[1]).weight for at, mlp in mlps.items()}
    try:
        for at, delta in edits.items():
            weight = (before[at].double() + delta.double()).to(before[at].dtype)
            getattr(mlps[at], at[1]).weight = nn.Parameter(weight, requires_grad=False)
        yield
    finally:
        for at, weight in before.items():
            getattr(mlps[at], at[1]).weight = weight


def combined(first: Edits, second: Edits) -> dict[tuple[int, Site], Tensor]:
    """Both edits at once."""
    total = dict(first)
    for at, delta in second.items():
        total[at] = total[at] + delta if at in total else delta
    return total


@torch.no_grad()
def logits(model: NPTForCausalLM, ids: Tensor, version: int | None = None) -> Tensor:
    """`[B, T, vocab]` of right-padded `ids` `[B, T]`."""
    out: Tensor = model(input_ids=ids.to(model.device), use_cache=False, weights_version=version).logits
    return out
