"""The plain Llama to compare with: a teacher, or the model itself without its adapters."""

import copy
from pathlib import Path
from typing import Any

from npt_core.checkpoint import load_checkpoint
from npt_core.model import NPTForCausalLM

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
)


def load_teacher(source: Path, like: NPTForCausalLM) -> NPTForCausalLM:
    """The Llama in `source`, on the device and in the dtype of `like`, for the engine and for
    `convert_npt_to_llama`.

    Raises:
        CheckpointError: see `npt_core.checkpoint`.
        ValueError: it is no plain Llama, or its sizes are not those of `like`.
    """
    teacher: Any = load_checkpoint(source, like.dtype, "sdpa")
    if teacher.config.npt_layers:
        raise ValueError(f"{source} is no plain Llama")
    for name in _SIZES:
        wanted, found = getattr(like.config, name), getattr(teacher.config, name)
        if wanted != found:
            raise ValueError(f"{source} has {name} {found} where the model has {wanted}")
    placed: NPTForCausalLM = teacher.to(like.device)
    return placed


def without_adapters(model: NPTForCausalLM) -> NPTForCausalLM:
    """A copy without adapters, every layer a plain Llama's: nonsense as text, the same as work."""
    config = copy.deepcopy(model.config)
    config.npt_layers = {}
    plain: Any = NPTForCausalLM(config)
    plain.to(device=model.device, dtype=model.dtype)
    plain.load_state_dict({n: w for n, w in model.state_dict().items() if ".mlp.adapter." not in n})
    plain.model.rotary_emb = copy.deepcopy(model.model.rotary_emb)  # A cast would have rounded it.
    plain.set_attn_implementation(model.config._attn_implementation)
    stripped: NPTForCausalLM = plain.eval()
    return stripped
