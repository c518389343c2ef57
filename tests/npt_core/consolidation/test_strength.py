"""How much modulation changes each token, against the formula written out."""

from typing import Any

import pytest
import torch
from torch import Tensor

from npt_core.bank import Bank, Factors, FactWeights
from npt_core.config import NPTConfig
from npt_core.consolidation import modulates, modulation_strengths
from npt_core.consolidation.states import private_copy
from npt_core.convert import convert_llama_to_npt
from npt_core.model import NPTForCausalLM
from tests.npt_core.tiny import new_llama, new_npt

IDS = [5, 9, 14, 3, 7]
NO_BANK = [None, None]


def by_hand(model: NPTForCausalLM, ids: list[int], scale: float = 1.0) -> list[float]:
    """The mean over layers of `|s (g * mult + add)| / |g|`, from what the modules themselves give."""
    gates: dict[int, Tensor] = {}
    parts: dict[int, Any] = {}
    handles = []
    for i, layer in enumerate(model.model.layers):
        gate, adapter = layer.mlp.gate_proj, layer.mlp.adapter
        handles.append(gate.register_forward_hook(lambda _m, _i, out, i=i: gates.__setitem__(i, out[0])))
        handles.append(adapter.register_forward_hook(lambda _m, _i, out, i=i: parts.__setitem__(i, out)))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]), modulation_scale=scale, use_cache=False)
    for handle in handles:
        handle.remove()
    shares = [
        scale * (gates[i] * parts[i].mult[0] + parts[i].add[0]).norm(dim=-1) / gates[i].norm(dim=-1)
        for i in gates
    ]
    means: list[float] = torch.stack(shares).mean(0).tolist()
    return means


@pytest.mark.parametrize("scale", [None, 1.0, 0.3])
def test_strength_is_the_formula(scale: float | None) -> None:
    model = new_npt()
    found = modulation_strengths(private_copy(model), NO_BANK, IDS, 0, scale)
    assert found == pytest.approx(by_hand(model, IDS, 1.0 if scale is None else scale), rel=1e-5)
    assert all(strength > 0 for strength in found)


def test_scale_of_zero_touches_nothing() -> None:
    assert modulation_strengths(new_npt(), NO_BANK, IDS, 0, 0.0) == [0.0] * len(IDS)


def test_what_follows_changes_no_token_before_it() -> None:
    model = new_npt()
    whole = modulation_strengths(model, NO_BANK, IDS, 0)
    assert modulation_strengths(model, NO_BANK, IDS[:3], 0) == pytest.approx(whole[:3], rel=1e-5)


def test_adapters_of_zero_touch_nothing_and_without_adapters_nothing_can_be_told() -> None:
    neutral = convert_llama_to_npt(new_llama(), "all", "v1", rank=4).eval()
    assert modulates(neutral)
    assert modulation_strengths(neutral, NO_BANK, IDS, 0) == [0.0] * len(IDS)
    plain = NPTForCausalLM(NPTConfig(**{**neutral.config.to_dict(), "npt_layers": {}})).eval()
    assert not modulates(plain)
    with pytest.raises(ValueError, match="without adapters"):
        modulation_strengths(plain, NO_BANK, IDS, 0)


def test_layers_without_an_adapter_do_not_count() -> None:
    model = convert_llama_to_npt(new_llama(), [1], "v1", rank=4).eval()
    mlp: Any = model.model.layers[1].mlp
    seen: list[tuple[Any, ...]] = []
    with torch.no_grad():
        mlp.adapter.B_add.weight.normal_()
        found = modulation_strengths(model, NO_BANK, IDS, 0)
        handle = mlp.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs))
        model(input_ids=torch.tensor([IDS]), use_cache=False)
        handle.remove()
        expected = mlp.modulation_strength(*seen[0])[0].tolist()
    assert found == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="plain Llama layer"):
        model.model.layers[0].mlp.modulation_strength(*seen[0])


def test_strength_is_that_of_a_version_and_leaves_no_trace() -> None:
    model = new_npt()
    twin = private_copy(model)
    config = model.config
    bank = Bank(model, {})
    factors = Factors(torch.randn(1, config.intermediate_size), torch.randn(1, config.hidden_size))
    bank.publish(1, {"fact": FactWeights({}, {(0, "gate_proj"): factors})}, [])
    before = modulation_strengths(twin, bank.layers, IDS, 0)
    after = modulation_strengths(twin, bank.layers, IDS, 1)
    assert before == modulation_strengths(twin, NO_BANK, IDS, 0)
    assert before != after
    assert all(layer.mlp.plastic is None for layer in twin.model.layers)
    assert not any(module._forward_pre_hooks for module in twin.modules())
