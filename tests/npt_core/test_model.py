from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, LlamaForCausalLM

from npt_core.config import MODULATION_TYPES
from npt_core.convert import convert_llama_to_npt
from npt_core.model import NPTForCausalLM, NPTModel
from tests.conftest import MakeLlama
from tests.npt_core.helpers import Reference, awakened, mixed_npt
from tests.npt_core.test_layers import Shift


@pytest.fixture
def mixed(llama: LlamaForCausalLM) -> NPTForCausalLM:
    return mixed_npt(llama)


def padded(ids: Tensor, short: int) -> tuple[Tensor, Tensor]:
    """`ids` with the first `short` tokens of row 1 turned into left padding, and the mask."""
    mask = torch.ones_like(ids)
    mask[1, :short] = 0
    return ids * mask, mask


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_v1_with_zero_adapters_is_the_llama_bit_for_bit(
    make_llama: MakeLlama,
    ids: Tensor,
    implementation: str,
    tied: bool,
    kv_heads: int,
    dtype: torch.dtype,
) -> None:
    llama = make_llama(tie_word_embeddings=tied, num_key_value_heads=kv_heads).to(dtype)
    llama.set_attn_implementation(implementation)
    model = convert_llama_to_npt(llama, rank=4)
    tokens, mask = padded(ids, 4)
    for given in (None, mask):
        wanted = llama(tokens, attention_mask=given)
        assert torch.equal(model(tokens, attention_mask=given).logits, wanted.logits)


def test_v1_gives_the_loss_and_gradients_of_the_llama(llama: LlamaForCausalLM, ids: Tensor) -> None:
    model = convert_llama_to_npt(llama, rank=4)
    for each in (llama, model):
        each(ids, labels=ids).loss.backward()
    gradients = {name: w.grad for name, w in model.named_parameters()}
    for name, weight in llama.named_parameters():
        torch.testing.assert_close(gradients[name], weight.grad)


@pytest.mark.parametrize("kind", MODULATION_TYPES)
@pytest.mark.parametrize("scale", [1.0, 0.0, 0.4])
def test_the_model_is_its_formulas(llama: LlamaForCausalLM, ids: Tensor, kind: Any, scale: float) -> None:
    model = mixed_npt(llama, modulation_type=kind).double()
    got = model(ids[:1], modulation_scale=scale).logits[0]
    # transformers computes norms and rope in fp32, whatever the dtype of the model.
    torch.testing.assert_close(got, Reference(model).logits(ids[0], scale), rtol=1e-4, atol=1e-4)


def test_attention_of_a_v2_layer_reaches_the_stream_only_through_the_adapter(
    llama: LlamaForCausalLM, ids: Tensor
) -> None:
    model = awakened(convert_llama_to_npt(llama, "all", "v2", rank=6))
    other = torch.cat([ids[:, :-1].flip(1), ids[:, -1:]], 1)
    assert not torch.allclose(model(ids).logits[:, -1], model(other).logits[:, -1])
    off = [model(x, modulation_scale=0.0).logits[:, -1] for x in (ids, other)]
    torch.testing.assert_close(*off)


def test_scale_zero_is_the_base_in_v1_and_may_differ_by_request(llama: LlamaForCausalLM, ids: Tensor) -> None:
    model = awakened(convert_llama_to_npt(llama, rank=4))
    assert torch.equal(model(ids, modulation_scale=0.0).logits, llama(ids).logits)
    per_row = model(ids, modulation_scale=torch.tensor([0.0, 1.0])).logits
    torch.testing.assert_close(per_row[0], llama(ids).logits[0])
    torch.testing.assert_close(per_row[1], model(ids).logits[1])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_cached_decoding_is_full_recomputation(
    mixed: NPTForCausalLM, ids: Tensor, implementation: str
) -> None:
    mixed.set_attn_implementation(implementation)
    wanted, cache, steps = mixed(ids).logits, None, []
    for chunk in (ids[:, :5], *ids[:, 5:].split(1, dim=1)):
        output = mixed(chunk, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, 1), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_left_padding_changes_nothing(mixed: NPTForCausalLM, ids: Tensor, implementation: str) -> None:
    mixed.set_attn_implementation(implementation)
    tokens, mask = padded(ids, 5)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    got = mixed(tokens, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(got[0], mixed(ids).logits[0], rtol=1e-4, atol=1e-5)
    alone = mixed(ids[1:, 5:]).logits[0]
    torch.testing.assert_close(got[1, 5:], alone, rtol=1e-4, atol=1e-5)


def test_a_padded_batch_generates_what_each_prompt_generates_alone(
    mixed: NPTForCausalLM, ids: Tensor
) -> None:
    tokens, mask = padded(ids, 5)
    together = mixed.generate(tokens, attention_mask=mask, max_new_tokens=8, do_sample=False)
    for row, prompt in enumerate((ids[:1], ids[1:, 5:])):
        alone = mixed.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False
        )
        new = alone[0, prompt.shape[1] :]
        assert torch.equal(together[row, ids.shape[1] :][: len(new)], new)


def test_greedy_generation_takes_the_most_likely_token(mixed: NPTForCausalLM, ids: Tensor) -> None:
    output = mixed.generate(
        ids[:1], attention_mask=torch.ones_like(ids[:1]), max_new_tokens=6, do_sample=False
    )
    for end in range(ids.shape[1], output.shape[1]):
        assert output[0, end] == mixed(output[:, :end]).logits[0, -1].argmax()


@pytest.mark.parametrize("beams", [1, 2])
def test_version_and_scale_travel_through_generate(mixed: NPTForCausalLM, ids: Tensor, beams: int) -> None:
    plastic = mixed.model.layers[2].mlp.plastic = Shift()
    scales: list[Any] = []
    mixed.model.layers[2].mlp.register_forward_pre_hook(lambda _m, args: scales.append(args[3]))
    versions, scale = torch.tensor([3, 8]), torch.tensor([0.0, 1.0])
    mixed.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        weights_version=versions,
        modulation_scale=scale,
        num_beams=beams,
        min_new_tokens=3,
        max_new_tokens=3,
        do_sample=False,
    )
    assert len(scales) == 3
    assert all(seen.tolist() == scale.repeat_interleave(beams).tolist() for seen in scales)
    wanted = versions.repeat_interleave(beams).tolist()
    assert all(seen.tolist() == wanted for seen in plastic.seen)


def test_a_misspelt_argument_of_generate_is_refused(mixed: NPTForCausalLM, ids: Tensor) -> None:
    with pytest.raises(ValueError, match="weight_version"):
        mixed.generate(ids, weight_version=1)


def test_exactly_one_input_is_needed(mixed: NPTForCausalLM, ids: Tensor) -> None:
    embedded = mixed.get_input_embeddings()(ids)
    torch.testing.assert_close(mixed(inputs_embeds=embedded).logits, mixed(ids).logits)
    for wrong in ({}, {"input_ids": ids, "inputs_embeds": embedded}):
        with pytest.raises(ValueError, match="exactly one"):
            mixed(**wrong)


def test_hidden_states_and_attentions_come_out(mixed: NPTForCausalLM, ids: Tensor) -> None:
    mixed.set_attn_implementation("eager")
    output = mixed(ids, output_hidden_states=True, output_attentions=True)
    assert [tuple(h.shape) for h in output.hidden_states] == [(2, 13, 32)] * 5
    assert [tuple(a.shape) for a in output.attentions] == [(2, 4, 13, 13)] * 4
    torch.testing.assert_close(mixed.lm_head(output.hidden_states[-1]), output.logits)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(
    mixed: NPTForCausalLM, ids: Tensor, reentrant: bool
) -> None:
    def gradients() -> dict[str, Tensor]:
        mixed.zero_grad()
        mixed(ids, labels=ids, modulation_scale=torch.tensor([0.5, 1.0])).loss.backward()
        return {name: w.grad.clone() for name, w in mixed.named_parameters()}

    mixed.train()
    wanted = gradients()
    mixed.activation_checkpointing_enable({"use_reentrant": reentrant})
    assert all(layer.gradient_checkpointing for layer in mixed.model.layers)
    got = gradients()
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient)


def test_it_compiles_to_one_graph(make_llama: MakeLlama, ids: Tensor) -> None:
    llama = make_llama(num_hidden_layers=2)
    v1 = convert_llama_to_npt(llama, [0], "v1", rank=4)
    model = awakened(convert_llama_to_npt(v1, [1], "v2"))
    with torch.no_grad():
        got = torch.compile(model, fullgraph=True)(ids, use_cache=False).logits
    torch.testing.assert_close(got, model(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shard", ["50GB", "8KB"])
@pytest.mark.parametrize("tied", [False, True])
def test_what_was_saved_comes_back(
    make_llama: MakeLlama, ids: Tensor, tmp_path: Path, shard: str, tied: bool
) -> None:
    model = mixed_npt(make_llama(tie_word_embeddings=tied))
    model.model.layers[0].mlp.plastic = None
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) is (shard == "8KB")
    for load in (AutoModelForCausalLM, NPTForCausalLM):
        loaded, report = load.from_pretrained(tmp_path, output_loading_info=True)
        assert isinstance(loaded, NPTForCausalLM)
        assert not any(report.values())
        assert torch.equal(loaded(ids).logits, model(ids).logits)
        assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied


def test_the_base_model_loads_alone(mixed: NPTForCausalLM, ids: Tensor, tmp_path: Path) -> None:
    mixed.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    assert isinstance(base, NPTModel)
    assert torch.equal(base(ids).last_hidden_state, mixed.model(ids).last_hidden_state)


def test_a_bf16_load_keeps_rope_in_fp32(mixed: NPTForCausalLM, tmp_path: Path) -> None:
    mixed.save_pretrained(tmp_path)
    loaded = NPTForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.model.layers[1].mlp.adapter.A.weight.dtype == torch.bfloat16
    assert torch.equal(loaded.model.rotary_emb.inv_freq, mixed.model.rotary_emb.inv_freq)


def test_a_new_model_starts_with_adapters_that_fit_their_variant(mixed: NPTForCausalLM) -> None:
    model = NPTForCausalLM(mixed.config)
    v1, v2 = (model.model.layers[layer].mlp.adapter for layer in (1, 2))
    assert v1.is_neutral()
    assert v1.A.weight.any()
    assert not v2.is_neutral()
    assert not v2.B_mult.weight.any()
    assert v2.B_add.weight.std().item() == pytest.approx(0.02, rel=0.2)


def test_parameter_names_are_those_of_llama_plus_adapters(
    llama: LlamaForCausalLM, mixed: NPTForCausalLM
) -> None:
    extra = mixed.state_dict().keys() - llama.state_dict().keys()
    assert llama.state_dict().keys() <= mixed.state_dict().keys()
    assert extra == {
        f"model.layers.{layer}.mlp.adapter.{part}.weight"
        for layer in (1, 2, 3)
        for part in ("A", "B_add", "B_mult")
    }
