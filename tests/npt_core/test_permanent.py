from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from npt_core.config import NPTConfig
from npt_core.layers import NPTMLP
from npt_core.model import NPTForCausalLM
from npt_core.permanent import StaleConsolidation
from tests.npt_core.helpers import mixed_npt


@pytest.fixture
def model(llama: LlamaForCausalLM) -> NPTForCausalLM:
    return mixed_npt(llama)


def gates(model: NPTForCausalLM) -> list[Tensor]:
    return [layer.mlp.gate_proj.weight.detach().clone() for layer in model.model.layers]


def unchanged(model: NPTForCausalLM, before: list[Tensor]) -> bool:
    return all(map(torch.equal, gates(model), before))


def test_factors_are_those_of_each_layer_in_one_pass(model: NPTForCausalLM, ids: Tensor) -> None:
    hidden = model(ids[:1], output_hidden_states=True).hidden_states
    handle = model.consolidate_weights(ids[:1], token_idx=4, alpha=0.3, apply=False)
    assert list(handle.factors) == [1, 2, 3]
    for layer, factors in handle.factors.items():
        wanted = model.model.layers[layer].consolidate_weights(hidden[layer], 4, 0.3, apply=False)
        torch.testing.assert_close(factors.left, wanted.left)
        torch.testing.assert_close(factors.right, wanted.right)


def test_the_update_is_the_sum_of_the_factors_and_reverting_is_bit_exact(
    model: NPTForCausalLM, ids: Tensor
) -> None:
    before, logits = gates(model), model(ids).logits
    handle = model.consolidate_weights(ids[:1], alpha=1.0)
    for layer, factors in handle.factors.items():
        weight = model.model.layers[layer].mlp.gate_proj.weight
        torch.testing.assert_close(weight - before[layer], torch.outer(*factors), atol=1e-6, rtol=1e-4)
    assert not torch.allclose(model(ids).logits, logits)
    handle.revert()
    assert unchanged(model, before)
    assert torch.equal(model(ids).logits, logits)


def test_in_bf16_factors_are_fp32_and_reverting_is_bit_exact(model: NPTForCausalLM, ids: Tensor) -> None:
    model.bfloat16()
    before = gates(model)
    handle = model.consolidate_weights(ids[:1], alpha=1.0)
    assert all(f.left.dtype == torch.float32 for f in handle.factors.values())
    assert not unchanged(model, before)
    handle.revert()
    assert unchanged(model, before)


def test_two_updates_are_undone_in_reverse_order_only(model: NPTForCausalLM, ids: Tensor) -> None:
    before = gates(model)
    first, second = (model.consolidate_weights(row[None], alpha=0.5) for row in ids)
    with pytest.raises(StaleConsolidation, match="layer 1"):
        first.revert()
    assert first.applied
    second.revert()
    first.revert()
    assert unchanged(model, before)


def test_applying_later_is_the_same_as_at_once(model: NPTForCausalLM, ids: Tensor) -> None:
    handle = model.consolidate_weights(ids[:1])
    at_once = gates(model)
    handle.revert()
    handle.apply()
    assert unchanged(model, at_once)
    with pytest.raises(RuntimeError, match="already applied"):
        handle.apply()
    handle.revert()
    with pytest.raises(RuntimeError, match="not applied"):
        handle.revert()


def test_negative_and_positive_token_indices_agree(model: NPTForCausalLM, ids: Tensor) -> None:
    last, same = (
        model.consolidate_weights(ids[:1], token_idx=index, apply=False).factors for index in (-1, 12)
    )
    assert all(torch.equal(last[layer].left, same[layer].left) for layer in last)


@pytest.mark.parametrize(
    ("layers", "token_idx", "rows", "message"),
    [
        ("all", 13, 1, "token_idx 13 is outside an input of 13 tokens"),
        ("all", -1, 2, r"must be \[1, T\]"),
        ([0, 1], -1, 1, r"layers \[0\] are plain"),
        ([9], -1, 1, "unknown layer 9"),
    ],
)
def test_a_wrong_call_changes_nothing(
    model: NPTForCausalLM, ids: Tensor, layers: Any, token_idx: int, rows: int, message: str
) -> None:
    before = gates(model)
    with pytest.raises(ValueError, match=message):
        model.consolidate_weights(ids[:rows], layers=layers, token_idx=token_idx)
    assert unchanged(model, before)


def test_a_model_without_adapters_is_refused(llama: LlamaForCausalLM, ids: Tensor) -> None:
    model = mixed_npt(llama)
    for layer in model.model.layers:
        layer.mlp.adapter = None
    with pytest.raises(ValueError, match="nothing to consolidate"):
        model.consolidate_weights(ids[:1])


@pytest.mark.parametrize("part", ["additive", "multiplicative"])
def test_parts_of_the_modulation_add_up(part: str) -> None:
    torch.manual_seed(0)
    config = NPTConfig(hidden_size=8, intermediate_size=12, num_attention_heads=2, npt_layers={"0": "v2"})
    mlp = NPTMLP(config, "v2")
    torch.nn.init.normal_(mlp.adapter.B_mult.weight)
    n, attn = torch.randn(8), torch.randn(8)
    other = "multiplicative" if part == "additive" else "additive"
    both = mlp.rank_one(n, attn, 1.0)
    parts = [mlp.rank_one(n, attn, 1.0, p).left for p in (part, other)]
    assert torch.allclose(parts[0] + parts[1], both.left, atol=1e-6)
    assert not torch.allclose(parts[0], both.left)
