"""A plain Llama as a GGUF file in float32, so that llama.cpp can run the same weights.

GGUFExportError
├── UnsupportedModel        an activation or rotary embedding that llama.cpp's Llama does not have
└── UnsupportedTokenizer    not a byte-level BPE whose rules llama.cpp knows by name
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # llama_token_type


class GGUFExportError(Exception):
    """The model or its tokenizer has no equal in llama.cpp; the message says why."""


class UnsupportedModel(GGUFExportError):
    pass


class UnsupportedTokenizer(GGUFExportError):
    pass


def export_gguf(
    model: LlamaForCausalLM, path: Path, tokenizer: PreTrainedTokenizerFast | None = None
) -> None:
    """Writes `path`. Without a tokenizer the file takes and gives token ids only.

    Raises:
        GGUFExportError: see the tree above; nothing is written.
        ImportError: the package `gguf` is missing.
    """
    import gguf

    if model.config.hidden_act != "silu":
        raise UnsupportedModel(f"hidden_act {model.config.hidden_act}: llama.cpp's Llama has silu")
    factors = _rope_factors(model)
    vocabulary = None if tokenizer is None else _vocabulary(tokenizer, model.config.vocab_size)
    writer = gguf.GGUFWriter(path, "llama")
    _add_sizes(writer, model)
    if vocabulary is None:
        writer.add_tokenizer_model("none")
    else:
        _add_vocabulary(writer, vocabulary, model.config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    for name, weight in _weights(model).items():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UnsupportedModel(f"{name} has no name in GGUF")
        writer.add_tensor(found, weight)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: Any, model: LlamaForCausalLM) -> None:
    config = model.config
    width, kv_heads, theta = _attention(model)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_file_type(0)  # all weights are float32


def _attention(model: LlamaForCausalLM) -> tuple[int, int, float]:
    """Width of a head, heads of keys and values, base of the rotary frequencies."""
    attention: Any = model.model.layers[0].self_attn
    width = int(attention.head_dim)
    parameters: Any = model.config.rope_parameters
    return width, attention.k_proj.out_features // width, float(parameters["rope_theta"])


def _rope_factors(model: LlamaForCausalLM) -> np.ndarray[Any, Any] | None:
    """Divisors `[head_dim / 2]` of llama.cpp's plain frequencies; None where they are plain.

    Taken from the frequencies themselves, so that linear and Llama 3 scaling need no formula here.
    """
    rotary = model.model.rotary_emb
    if "dynamic" in rotary.rope_type or rotary.rope_type == "longrope" or rotary.attention_scaling != 1:
        raise UnsupportedModel(f"rope type {rotary.rope_type} is more than fixed frequencies")
    width, _, theta = _attention(model)
    plain = theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    if len(rotary.inv_freq) != len(plain):
        raise UnsupportedModel("a part of each head is not rotated")
    factors = plain / rotary.inv_freq.double()
    return None if torch.allclose(factors, torch.ones_like(factors)) else factors.float().numpy()


def _weights(model: LlamaForCausalLM) -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor once, as llama.cpp wants it; it reads a tied head from the embedding."""
    config = model.config
    _, kv_heads, _ = _attention(model)
    heads = {"q_proj": config.num_attention_heads, "k_proj": kv_heads}
    found = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        projection = name.split(".")[-2]
        if projection in heads:
            weight = _interleaved(weight, heads[projection])
        found[name] = weight.float().contiguous().numpy()
    return found


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows `[heads * head_dim, ...]` in llama.cpp's order.

    Transformers rotates the halves of a head against each other, llama.cpp neighbouring rows.
    """
    halves = weight.view(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def _add_vocabulary(writer: Any, vocabulary: dict[str, Any], config: Any) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary["pre"])
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_types(vocabulary["types"])
    writer.add_token_merges(vocabulary["merges"])
    writer.add_add_bos_token(vocabulary["add_bos"])
    writer.add_bos_token_id(config.bos_token_id)
    end = config.eos_token_id
    writer.add_eos_token_id(end[0] if isinstance(end, list) else end)


def _vocabulary(tokenizer: PreTrainedTokenizerFast, size: int) -> dict[str, Any]:
    """Tokens and their kinds by id, merges in order, and the name of the pre-tokenizer."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    core = spec["model"]
    if core["type"] != "BPE" or core["byte_fallback"] or spec["normalizer"] is not None:
        raise UnsupportedTokenizer("llama.cpp's byte-level tokenizer is BPE without a normalizer")
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [_UNUSED] * size
    for token, index in core["vocab"].items():
        tokens[index], types[index] = token, _NORMAL
    for added in spec["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    return {
        "pre": _pre_tokenizer(spec),
        "tokens": tokens,
        "types": types,
        "merges": [" ".join(pair) for pair in core["merges"]],
        "add_bos": tokenizer("").input_ids[:1] == [tokenizer.bos_token_id],
    }


def _pre_tokenizer(spec: dict[str, Any]) -> str:
    """llama.cpp's name of the rules that cut text into words; it has the rules themselves built in."""
    rules = spec["pre_tokenizer"] or {"type": "none"}
    match rules.get("pretokenizers", [rules]), spec["model"]["ignore_merges"]:
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}], False:
            return "gpt-2"
        case [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        ], False:
            return "smollm"
        case [
            {"type": "Split", "pattern": {"Regex": pattern}},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ], True if pattern == _LLAMA3_SPLIT:
            return "llama-bpe"
    raise UnsupportedTokenizer("these pre-tokenizer rules have no name in llama.cpp")
