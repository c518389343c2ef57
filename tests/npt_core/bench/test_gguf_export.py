"""The file is read back with the `gguf` package; llama.cpp runs it in `test_llama_cpp_peer`."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from npt_core.bench.gguf_export import UnsupportedModel, UnsupportedTokenizer, export_gguf
from tests.npt_core import tiny

gguf = pytest.importorskip("gguf")


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """Values by key, and tensors by name in the shape that torch gives them."""
    reader = gguf.GGUFReader(path)
    values = {name: field.contents() for name, field in reader.fields.items()}
    return values, {tensor.name: tensor.data for tensor in reader.tensors}


def test_sizes_and_weights_are_the_models(tmp_path: Path) -> None:
    llama = tiny.new_llama()
    export_gguf(llama, tmp_path / "m.gguf")
    values, tensors = read(tmp_path / "m.gguf")
    assert values["general.architecture"] == "llama"
    assert values["llama.attention.head_count"] == 4
    assert values["llama.attention.head_count_kv"] == 2
    assert values["llama.rope.dimension_count"] == 8
    assert values["llama.vocab_size"] == 400
    assert values["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(llama.config.rms_norm_eps)
    weights = llama.state_dict()
    assert np.array_equal(tensors["output.weight"], weights["lm_head.weight"])
    assert np.array_equal(tensors["blk.1.attn_v.weight"], weights["model.layers.1.self_attn.v_proj.weight"])
    assert np.array_equal(tensors["blk.0.ffn_down.weight"], weights["model.layers.0.mlp.down_proj.weight"])


def test_rows_that_rotate_together_become_neighbours(tmp_path: Path) -> None:
    llama = tiny.new_llama()
    export_gguf(llama, tmp_path / "m.gguf")
    _, tensors = read(tmp_path / "m.gguf")
    k = llama.model.layers[0].self_attn.k_proj.weight.detach()  # [2 heads * 8, 32]
    rows = [head * 8 + half * 4 + pair for head in range(2) for pair in range(4) for half in range(2)]
    assert np.array_equal(tensors["blk.0.attn_k.weight"], k[rows])


def test_tied_head_is_left_out(tmp_path: Path) -> None:
    export_gguf(tiny.new_llama(tie_word_embeddings=True), tmp_path / "m.gguf")
    assert "output.weight" not in read(tmp_path / "m.gguf")[1]


@pytest.mark.parametrize("bias", [False, True])
def test_every_parameter_is_in_the_file(tmp_path: Path, bias: bool) -> None:
    llama = tiny.new_llama(attention_bias=bias, mlp_bias=bias)
    export_gguf(llama, tmp_path / "m.gguf")
    _, tensors = read(tmp_path / "m.gguf")
    assert len(tensors) == len(llama.state_dict()) + 1
    assert sum(t.size for n, t in tensors.items() if n != "rope_freqs.weight") == llama.num_parameters()


def test_scaled_frequencies_are_plain_ones_with_divisors(tmp_path: Path) -> None:
    llama = tiny.new_llama()
    export_gguf(llama, tmp_path / "m.gguf")
    values, tensors = read(tmp_path / "m.gguf")
    plain = values["llama.rope.freq_base"] ** -(np.arange(4) / 4)
    np.testing.assert_allclose(plain / tensors["rope_freqs.weight"], llama.model.rotary_emb.inv_freq, 1e-6)


def test_plain_frequencies_need_no_divisors(tmp_path: Path) -> None:
    llama = tiny.new_llama(rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    export_gguf(llama, tmp_path / "m.gguf")
    values, tensors = read(tmp_path / "m.gguf")
    assert values["llama.rope.freq_base"] == 500.0
    assert "rope_freqs.weight" not in tensors


def test_vocabulary_has_a_token_for_every_id(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    export_gguf(tiny.new_llama(vocab_size=410), tmp_path / "m.gguf", tokenizer)
    values, _ = read(tmp_path / "m.gguf")
    known = len(tokenizer)
    tokens = values["tokenizer.ggml.tokens"]
    assert tokens[:known] == tokenizer.convert_ids_to_tokens(range(known))
    assert len(tokens) == len(values["tokenizer.ggml.token_type"]) == 410
    assert values["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]
    assert values["tokenizer.ggml.token_type"][-1] == 5
    assert values["tokenizer.ggml.pre"] == "smollm"
    assert values["tokenizer.ggml.add_bos_token"] is True
    assert values["tokenizer.ggml.eos_token_id"] == 2


def test_byte_level_rules_have_their_own_name(tmp_path: Path) -> None:
    export_gguf(tiny.new_llama(), tmp_path / "m.gguf", tiny.llama3_tokenizer())
    assert read(tmp_path / "m.gguf")[0]["tokenizer.ggml.pre"] == "gpt-2"


@pytest.mark.parametrize(
    "overrides",
    [
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
    ],
)
def test_model_without_an_equal_is_refused(tmp_path: Path, overrides: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel):
        export_gguf(tiny.new_llama(**overrides), tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_tokenizer_without_an_equal_is_refused(tmp_path: Path) -> None:
    core = copy.deepcopy(tiny.tokenizer().backend_tokenizer)
    core.normalizer = normalizers.Lowercase()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    with pytest.raises(UnsupportedTokenizer):
        export_gguf(tiny.new_llama(), tmp_path / "m.gguf", tokenizer)
    assert not list(tmp_path.iterdir())
