from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from npt_core.config import MODULATION_TYPES
from npt_core.convert import convert_llama_to_npt
from npt_core.layers import Modulation, NPTDecoderLayer
from npt_core.model import NPTForCausalLM
from tests.npt_core.helpers import awakened, mixed_npt


class Shift(nn.Module):
    """A plastic layer that adds constants and remembers the versions it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    gates = True

    def gate(self, n: Tensor, g: Tensor, weights_version: int | Tensor | None) -> Tensor:
        self.seen.append(weights_version)
        return g + 1.0

    def project(self, product: Any, z: Tensor, weights_version: int | Tensor | None) -> Tensor:
        return product(z, None)

    def down(self, z: Tensor, y: Tensor, weights_version: int | Tensor | None) -> Tensor:
        self.seen.append(weights_version)
        return y + 2.0


def npt(llama: LlamaForCausalLM, variant: Any = "v2", kind: Any = "both") -> NPTForCausalLM:
    return awakened(convert_llama_to_npt(llama, "all", variant, rank=6, modulation_type=kind))


def states(length: int = 7) -> Tensor:
    return torch.randn(1, length, 32, generator=torch.Generator().manual_seed(5)).double()


@pytest.mark.parametrize(
    ("kind", "parts"),
    [("additive", (True, False)), ("multiplicative", (False, True)), ("both", (True, True))],
)
def test_the_adapter_gives_what_its_type_says(
    llama: LlamaForCausalLM, kind: str, parts: tuple[bool, bool]
) -> None:
    adapter = npt(llama, kind=kind).model.layers[0].mlp.adapter
    modulation = adapter(torch.randn(2, 5, 32))
    assert tuple(part is not None for part in modulation) == parts
    assert all(part.shape == (2, 5, 48) for part in modulation if part is not None)


def test_modulation_is_gate_times_one_plus_mult_plus_add() -> None:
    add, mult, gate = (torch.randn(2, 3, 4) for _ in range(3))
    torch.testing.assert_close(Modulation(add, mult).apply(gate), gate * (1 + mult) + add)  # rounded once
    assert torch.equal(Modulation(None, None).apply(gate), gate)
    assert torch.equal(Modulation(add, mult).apply(gate, 0.0), gate)
    mixed = Modulation(add, mult).apply(gate, torch.tensor([0.0, 1.0]))
    assert torch.equal(mixed[0], gate[0])
    assert torch.equal(mixed[1], Modulation(add, mult).apply(gate)[1])


@pytest.mark.parametrize("kind", MODULATION_TYPES)
def test_the_change_of_a_bf16_gate_keeps_its_digits(kind: str) -> None:
    part = torch.full((3,), 1e-4, dtype=torch.bfloat16)
    gate = torch.full((3,), 1.5, dtype=torch.bfloat16)
    modulation = Modulation(
        add=None if kind == "multiplicative" else part, mult=None if kind == "additive" else part
    )
    wanted = (kind != "additive") * 1.5 * part.float() + (kind != "multiplicative") * part.float()
    assert modulation.change(gate).dtype == torch.float32
    torch.testing.assert_close(modulation.change(gate), wanted)
    assert torch.equal(modulation.apply(gate), gate)


def test_a_hook_on_the_adapter_sees_the_modulation(llama: LlamaForCausalLM, ids: Tensor) -> None:
    model = npt(llama)
    seen: list[Modulation] = []
    for layer in model.model.layers:
        layer.mlp.adapter.register_forward_hook(lambda _m, _a, out: seen.append(out))
    model(ids)
    assert len(seen) == 4
    assert all(isinstance(m, Modulation) and m.add.shape == (2, 13, 48) for m in seen)


def test_plastic_weights_act_on_the_gate_before_modulation_and_on_the_output(
    llama: LlamaForCausalLM,
) -> None:
    mlp = npt(llama).model.layers[0].mlp
    n, attn = torch.randn(2, 3, 32), torch.randn(2, 3, 32)
    mlp.plastic = Shift()
    version = torch.tensor([4, 7])
    got = mlp(n, attn, version, 0.5)
    add, mult = mlp.adapter(attn)
    gate = (mlp.gate_proj(n) + 1) * (1 + 0.5 * mult) + 0.5 * add
    assert torch.allclose(got, mlp.down_proj(nn.functional.silu(gate) * mlp.up_proj(n)) + 2)
    assert all(seen is version for seen in mlp.plastic.seen)


def test_plastic_weights_work_in_a_plain_layer(llama: LlamaForCausalLM, ids: Tensor) -> None:
    model = mixed_npt(llama)
    before = model(ids).logits
    model.model.layers[0].mlp.plastic = Shift()
    after = model(ids, weights_version=3).logits
    assert model.model.layers[0].mlp.plastic.seen == [3, 3]
    assert not torch.allclose(before, after)


@pytest.mark.parametrize("variant", ["v1", "v2"])
@pytest.mark.parametrize("kind", MODULATION_TYPES)
@pytest.mark.parametrize("token_idx", [-1, 0, 3])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_consolidating_at_alpha_one_gives_the_gate_that_the_context_made(
    llama: LlamaForCausalLM, variant: str, kind: str, token_idx: int, implementation: str
) -> None:
    model = npt(llama, variant, kind).double()
    model.set_attn_implementation(implementation)
    layer = model.model.layers[2]
    n, attn = mlp_inputs(model, layer, states(), token_idx)
    wanted = layer.mlp.adapter(attn).apply(layer.mlp.gate_proj(n))
    assert not torch.allclose(wanted, layer.mlp.gate_proj(n), rtol=1e-2)
    layer.consolidate_weights(states(), token_idx=token_idx, alpha=1.0)
    torch.testing.assert_close(layer.mlp.gate_proj(n), wanted, rtol=1e-10, atol=1e-10)


def test_the_update_follows_the_formula_and_is_linear_in_alpha(llama: LlamaForCausalLM) -> None:
    model = npt(llama).double()
    layer = model.model.layers[1]
    before = layer.mlp.gate_proj.weight.detach().clone()
    n, attn = mlp_inputs(model, layer, states(), -1)
    low = layer.mlp.adapter.A.weight @ attn
    mult, add = layer.mlp.adapter.B_mult.weight @ low, layer.mlp.adapter.B_add.weight @ low
    wanted = 0.1 * torch.outer((before @ n) * mult + add, n) / (n @ n)
    update = layer.consolidate_weights(states())
    torch.testing.assert_close(torch.outer(*update), wanted)
    torch.testing.assert_close(layer.mlp.gate_proj.weight - before, wanted)


def test_without_apply_the_layer_is_unchanged(llama: LlamaForCausalLM) -> None:
    layer = npt(llama).double().model.layers[0]
    before = layer.mlp.gate_proj.weight.detach().clone()
    update = layer.consolidate_weights(states(), apply=False)
    assert update.left.shape == (48,)
    assert update.right.shape == (32,)
    assert torch.equal(layer.mlp.gate_proj.weight, before)


def test_given_positions_matter(llama: LlamaForCausalLM) -> None:
    model = npt(llama).double()
    layer = model.model.layers[0]
    here = model.model.rotary_emb(states(), torch.arange(7)[None])
    stretched = model.model.rotary_emb(states(), torch.arange(0, 70, 10)[None])
    default, same, other = (
        layer.consolidate_weights(states(), position_embeddings=given, apply=False).left
        for given in (None, here, stretched)
    )
    assert torch.equal(default, same)
    assert not torch.allclose(default, other)


@pytest.mark.parametrize(
    ("context", "token_idx", "message"),
    [
        (torch.zeros(7, 32), -1, "must be"),
        (torch.zeros(2, 7, 32), -1, "must be"),
        (torch.zeros(1, 7, 31), -1, "must be"),
        (torch.ones(1, 7, 32), 7, "token_idx 7 is outside a context of 7"),
        (torch.ones(1, 7, 32), -8, "token_idx -8"),
        (torch.zeros(1, 7, 32), -1, "is zero"),
    ],
)
def test_a_wrong_context_is_refused(
    llama: LlamaForCausalLM, context: Tensor, token_idx: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        npt(llama).model.layers[0].consolidate_weights(context, token_idx=token_idx)


def test_a_plain_layer_has_nothing_to_consolidate(llama: LlamaForCausalLM) -> None:
    layer = mixed_npt(llama).double().model.layers[0]
    with pytest.raises(ValueError, match="no modulation"):
        layer.consolidate_weights(states())


def mlp_inputs(
    model: NPTForCausalLM, layer: NPTDecoderLayer, context: Tensor, token_idx: int
) -> tuple[Tensor, Tensor]:
    """`n` and `attn`, `[d]`, that the layer's MLP gets at one token of `context`."""
    seen: list[tuple[Tensor, ...]] = []
    hook = layer.mlp.register_forward_pre_hook(lambda _m, args: seen.append(args))
    length = context.shape[1]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    mask = torch.zeros(1, 1, length, length).double().masked_fill(future, -1e9)
    rotary = model.model.rotary_emb(context, torch.arange(length)[None])
    layer(context, attention_mask=mask, position_embeddings=rotary)
    hook.remove()
    return seen[0][0][0, token_idx], seen[0][1][0, token_idx]
