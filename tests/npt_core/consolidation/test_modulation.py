from __future__ import annotations

import pytest
import torch

from npt_core.bank import Bank
from npt_core.consolidation import InvalidRequest, WriteRequest
from npt_core.consolidation.modulation import checked_ids, modulation_weights
from npt_core.consolidation.request import PRESETS
from npt_core.model import NPTForCausalLM
from npt_core.permanent import consolidate_modulation
from npt_core.prompts import PlainTemplate
from tests.npt_core.helpers import mixed_npt
from tests.npt_core.tiny import FACT, new_llama, new_npt, plain_template


@pytest.fixture
def model() -> NPTForCausalLM:
    return new_npt()


@pytest.fixture
def template() -> PlainTemplate:
    return plain_template()


def fact_ids(template: PlainTemplate) -> torch.Tensor:
    return torch.tensor([template.encode(f"Context: {FACT}")])


def request(**values: object) -> WriteRequest:
    return WriteRequest(FACT, **{"strategy": "modulation", **values})  # type: ignore[arg-type]


@torch.no_grad()
@pytest.mark.parametrize("token_idx", [-1, 3])
def test_the_strategy_is_consolidate_weights_without_touching_them(
    model: NPTForCausalLM, template: PlainTemplate, token_idx: int
) -> None:
    ids = fact_ids(template)
    before = model(ids).logits
    weights = modulation_weights(model, template, request(alpha=0.5, token_idx=token_idx))
    assert torch.equal(model(ids).logits, before)
    Bank(model, {}).attach().publish(1, {"fact": weights})
    published = model(ids).logits
    assert torch.equal(model(ids, weights_version=0).logits, before)
    other = new_npt()  # without a bank: the rule reads the weights as they are served
    handle = other.consolidate_weights(ids, token_idx=token_idx, alpha=0.5)
    in_place = other(ids).logits
    torch.testing.assert_close(published, in_place, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(in_place, before, atol=1e-2)
    for (index, site), factors in weights.factors.items():
        assert site == "gate_proj"
        left, right = handle.factors[index]
        torch.testing.assert_close(factors.left[0], left, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(factors.right[0], right, rtol=1e-4, atol=1e-6)


def test_layers_are_chosen(model: NPTForCausalLM, template: PlainTemplate) -> None:
    assert set(modulation_weights(model, template, request(layers=(1,))).factors) == {(1, "gate_proj")}
    assert len(modulation_weights(model, template, request()).factors) == 2


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_sets_alpha_and_part(model: NPTForCausalLM, template: PlainTemplate, preset: str) -> None:
    chosen = PRESETS[preset]
    ids = torch.tensor([checked_ids(template, request())])
    expected = consolidate_modulation(model, ids, "all", -1, chosen.alpha, False, chosen.modulation_type)
    made = modulation_weights(model, template, request(preset=preset, alpha=None))
    for (layer, _), factors in made.factors.items():
        assert torch.equal(factors.left[0], expected.factors[layer].left)


def test_an_alpha_that_is_given_wins_over_the_preset(model: NPTForCausalLM, template: PlainTemplate) -> None:
    ids = torch.tensor([checked_ids(template, request())])
    expected = consolidate_modulation(model, ids, "all", -1, 0.7, False, "additive")
    made = modulation_weights(model, template, request(preset="factual_recall", alpha=0.7))
    for (layer, _), factors in made.factors.items():
        assert torch.equal(factors.left[0], expected.factors[layer].left)


@pytest.mark.parametrize("token_idx", [1000, -1000])
def test_a_token_outside_the_fact_is_refused(
    model: NPTForCausalLM, template: PlainTemplate, token_idx: int
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        modulation_weights(model, template, request(token_idx=token_idx))
    assert refused.value.field == "token_idx"


def test_a_layer_without_an_adapter_is_refused(template: PlainTemplate) -> None:
    model = mixed_npt(new_llama(num_hidden_layers=4))
    with pytest.raises(InvalidRequest, match="plain Llama") as refused:
        modulation_weights(model, template, request(layers=(0,)))
    assert refused.value.field == "layers"
