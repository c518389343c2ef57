from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from npt_core.demonstrate import demonstrate_permanent_update
from tests.npt_core.helpers import mixed_npt


class Letters:
    """A tokenizer that knows lower-case letters."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [1, *(ord(letter) - ord("a") + 3 for letter in text)]}

    def decode(self, tokens: torch.Tensor, skip_special_tokens: bool) -> str:
        return "".join(chr(token - 3 + ord("a")) for token in tokens.tolist() if token > 2)


@pytest.mark.parametrize("keep", [False, True])
def test_the_answer_changes_and_the_weights_stay_only_if_kept(llama: LlamaForCausalLM, keep: bool) -> None:
    model = mixed_npt(llama)
    before = [layer.mlp.gate_proj.weight.detach().clone() for layer in model.model.layers]
    shown = demonstrate_permanent_update(
        model, Letters(), "context", "prompt", alpha=8.0, max_new_tokens=6, keep=keep
    )
    assert shown.changed
    assert shown.layers == (1, 2, 3)
    assert all(part in str(shown) for part in ("context", "prompt", shown.before, shown.after))
    after = [layer.mlp.gate_proj.weight for layer in model.model.layers]
    assert all(map(torch.equal, before, after)) is not keep
