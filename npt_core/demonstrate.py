"""Show that a permanent update changes what the model says, and that it can be taken back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from npt_core.config import LayerSpec
from npt_core.model import NPTForCausalLM


@dataclass(frozen=True)
class Demonstration:
    """One prompt answered before and after `context` was consolidated."""

    context: str
    prompt: str
    before: str
    after: str
    layers: tuple[int, ...]
    alpha: float

    @property
    def changed(self) -> bool:
        return self.before != self.after

    def __str__(self) -> str:
        layers = ", ".join(map(str, self.layers))
        return (
            f"context  {self.context}\n"
            f"prompt   {self.prompt}\n"
            f"before   {self.before}\n"
            f"after    {self.after}\n"
            f"         layers {layers}; alpha {self.alpha}"
        )


def demonstrate_permanent_update(
    model: NPTForCausalLM,
    tokenizer: Any,
    context: str,
    prompt: str,
    *,
    layers: LayerSpec = "all",
    token_idx: int = -1,
    alpha: float = 0.1,
    max_new_tokens: int = 20,
    keep: bool = False,
) -> Demonstration:
    """Answer `prompt` greedily, consolidate `context` by the original rule, answer again.

    `tokenizer` is any Hugging Face tokenizer. The weights are put back bit for bit unless
    `keep`.

    Raises:
        ValueError: as `NPTForCausalLM.consolidate_weights`; nothing has changed then.
    """
    before = _answer(model, tokenizer, prompt, max_new_tokens)
    context_ids = _encoded(model, tokenizer, context)
    update = model.consolidate_weights(context_ids, layers, token_idx, alpha)
    try:
        after = _answer(model, tokenizer, prompt, max_new_tokens)
    finally:
        if not keep:
            update.revert()
    return Demonstration(context, prompt, before, after, tuple(update.factors), alpha)


def _answer(model: NPTForCausalLM, tokenizer: Any, prompt: str, max_new_tokens: int) -> str:
    ids = _encoded(model, tokenizer, prompt)
    output: Any = model.generate(  # type: ignore[misc]
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=0,  # unused for one sequence; without it transformers logs a warning
    )
    return str(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


def _encoded(model: NPTForCausalLM, tokenizer: Any, text: str) -> torch.Tensor:
    return torch.tensor([tokenizer(text)["input_ids"]], device=model.device)
