from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from npt_core.checkpoint import CheckpointNotFound
from npt_core.convert import convert_llama_to_npt, convert_npt_to_llama, load_model
from npt_core.model import NPTForCausalLM
from tests.conftest import MakeLlama
from tests.npt_core.helpers import awakened, mixed_npt
from tests.npt_core.test_layers import Shift


def adapters(model: NPTForCausalLM) -> dict[str, Tensor]:
    return {name: w for name, w in model.state_dict().items() if ".adapter." in name}


def test_only_the_named_layers_are_converted(llama: LlamaForCausalLM) -> None:
    model = convert_llama_to_npt(llama, [1, 3], "v2", rank=5, modulation_type="additive")
    assert [layer.variant for layer in model.model.layers] == ["llama", "v2", "llama", "v2"]
    assert model.config.npt_layers == {"1": "v2", "3": "v2"}
    assert {name.split(".")[-2] for name in adapters(model)} == {"A", "B_add"}
    assert model.model.layers[1].mlp.adapter.A.weight.shape == (5, 32)


def test_variants_mix_and_layers_that_are_not_named_stay(llama: LlamaForCausalLM) -> None:
    v1 = awakened(convert_llama_to_npt(llama, [0, 1], "v1", rank=5))
    mixed = convert_llama_to_npt(v1, "upper_half", "v2")
    assert mixed.config.npt_layers == {"0": "v1", "1": "v1", "2": "v2", "3": "v2"}
    assert mixed.config.adapter_rank == 5
    kept = adapters(mixed)
    assert all(torch.equal(kept[name], weight) for name, weight in adapters(v1).items())


def test_the_source_is_left_alone(llama: LlamaForCausalLM, ids: Tensor) -> None:
    before = llama(ids).logits
    v1 = convert_llama_to_npt(llama, rank=4)
    v2 = convert_llama_to_npt(v1, "all", "v2")
    awakened(v2)
    with torch.no_grad():
        v2.model.embed_tokens.weight.zero_()
    assert v1.config.npt_layers["0"] == "v1"
    assert v1.model.layers[0].variant == "v1"
    assert torch.equal(v1(ids).logits, before)
    assert torch.equal(llama(ids).logits, before)


def test_adapters_start_as_their_variant_needs(llama: LlamaForCausalLM) -> None:
    v1 = convert_llama_to_npt(llama, rank=64).model.layers[0].mlp.adapter
    v2 = convert_llama_to_npt(llama, "all", "v2", rank=64).model.layers[0].mlp.adapter
    for adapter in (v1, v2):
        assert adapter.A.weight.std().item() == pytest.approx(32**-0.5, rel=0.1)
        assert not adapter.B_mult.weight.any()
    assert not v1.B_add.weight.any()
    assert v2.B_add.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_a_trained_adapter_is_kept_and_a_neutral_one_starts_anew(llama: LlamaForCausalLM) -> None:
    v1 = convert_llama_to_npt(llama, rank=4)
    head = v1.model.layers[1].mlp.adapter.B_add.weight
    torch.nn.init.ones_(head)
    v2 = convert_llama_to_npt(v1, "all", "v2", seed=9)
    assert torch.equal(v2.model.layers[1].mlp.adapter.B_add.weight, head)
    assert v2.model.layers[1].variant == "v2"
    assert v2.model.layers[0].mlp.adapter.B_add.weight.any()


def test_a_seed_means_the_same_start_whatever_else_is_converted(llama: LlamaForCausalLM) -> None:
    every = adapters(convert_llama_to_npt(llama, "all", "v2", seed=4))
    torch.manual_seed(99)
    some = adapters(convert_llama_to_npt(llama, [2], "v2", seed=4))
    other = adapters(convert_llama_to_npt(llama, [2], "v2", seed=5))
    assert all(torch.equal(every[name], weight) for name, weight in some.items())
    assert not any(torch.equal(w, other[name]) for name, w in some.items() if w.any())


def test_dtype_mode_attention_and_generation_settings_are_kept(llama: LlamaForCausalLM) -> None:
    llama.bfloat16().train()
    llama.set_attn_implementation("eager")
    llama.generation_config.max_new_tokens = 17
    for model in (convert_llama_to_npt(llama), convert_npt_to_llama(convert_llama_to_npt(llama))):
        assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
        assert all(module.training for module in model.modules())
        assert model.config._attn_implementation == "eager"
        assert model.generation_config.max_new_tokens == 17


def test_a_bank_is_not_copied(llama: LlamaForCausalLM) -> None:
    source = convert_llama_to_npt(llama)
    source.model.layers[0].mlp.plastic = Shift()
    assert convert_llama_to_npt(source, [3], "v2").model.layers[0].mlp.plastic is None
    assert source.model.layers[0].mlp.plastic is not None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layers": [4]}, "unknown layer 4"),
        ({"layers": "lower"}, "unknown layer selection"),
        ({"variant": "v3"}, "unknown variant 'v3'"),
        ({"rank": 0}, "adapter_rank"),
        ({"modulation_type": "none"}, "unknown modulation_type"),
        ({"layers": [2], "rank": 7}, r"layers \[0, 1\] keep adapters of rank 6"),
        ({"layers": [2], "modulation_type": "additive"}, "keep adapters"),
    ],
)
def test_a_wrong_conversion_is_refused(llama: LlamaForCausalLM, values: dict[str, Any], message: str) -> None:
    source = convert_llama_to_npt(llama, [0, 1], rank=6)
    with pytest.raises(ValueError, match=message):
        convert_llama_to_npt(source, **values)


def test_all_adapters_can_change_rank_together(llama: LlamaForCausalLM, ids: Tensor) -> None:
    model = convert_llama_to_npt(convert_llama_to_npt(llama, rank=6), rank=3)
    assert model.model.layers[0].mlp.adapter.A.weight.shape == (3, 32)
    assert torch.equal(model(ids).logits, llama(ids).logits)


@pytest.mark.parametrize("tied", [False, True])
def test_a_llama_directory_loads_as_exact_v1(
    make_llama: MakeLlama, ids: Tensor, tmp_path: Path, tied: bool
) -> None:
    llama = make_llama(tie_word_embeddings=tied)
    llama.save_pretrained(tmp_path, max_shard_size="8KB")
    for model in (load_model(tmp_path), convert_llama_to_npt(str(tmp_path))):
        assert set(model.config.npt_layers.values()) == {"v1"}
        assert not model.training
        assert torch.equal(model(ids).logits, llama(ids).logits)


def test_loading_twice_gives_the_same_weights(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path)
    first, second = load_model(tmp_path).state_dict(), load_model(tmp_path).state_dict()
    assert all(torch.equal(second[name], weight) for name, weight in first.items())


def test_an_npt_directory_loads_as_it_is(llama: LlamaForCausalLM, ids: Tensor, tmp_path: Path) -> None:
    model = mixed_npt(llama)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, attn_implementation="eager")
    assert loaded.config.npt_layers == model.config.npt_layers
    assert loaded.config._attn_implementation == "eager"
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    assert load_model(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_the_saved_dtype_is_the_default(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    llama.bfloat16().save_pretrained(tmp_path)
    assert load_model(tmp_path).dtype == torch.bfloat16


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound):
        convert_llama_to_npt(tmp_path / "absent")


def test_zero_adapters_go_back_to_llama(llama: LlamaForCausalLM, ids: Tensor) -> None:
    back = convert_npt_to_llama(convert_llama_to_npt(llama, [0, 2]))
    assert type(back) is LlamaForCausalLM
    assert back.config.model_type == "llama"
    assert "npt_layers" not in back.config.to_dict()
    assert torch.equal(back(ids).logits, llama(ids).logits)


def test_what_a_llama_cannot_hold_does_not_go_back(llama: LlamaForCausalLM) -> None:
    v1 = convert_llama_to_npt(llama)
    plastic = convert_llama_to_npt(llama)
    plastic.model.layers[1].mlp.plastic = Shift()
    cases = {
        "layer 2 is V2": convert_llama_to_npt(v1, [2], "v2"),
        "layer 0 has an adapter that modulates": awakened(v1),
        "layer 1 has plastic weights": plastic,
    }
    for message, model in cases.items():
        with pytest.raises(ValueError, match=message):
            convert_npt_to_llama(model)
