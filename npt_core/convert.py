"""Llama -> V1 -> V2, for all layers or some, and back where nothing would be lost."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from npt_core.checkpoint import (
    CheckpointError,
    load_checkpoint,
    npt_config,
    read_model_type,
    resolve_folder,
)
from npt_core.config import LayerSpec, ModulationType, NPTConfig, NPTVariant, resolve_layers
from npt_core.layers import Adapter, NPTDecoderLayer
from npt_core.model import NPTForCausalLM

__all__ = ["CheckpointError", "convert_llama_to_npt", "convert_npt_to_llama", "load_model"]

Source = LlamaForCausalLM | NPTForCausalLM | str | Path


def load_model(
    source: str | Path,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
) -> NPTForCausalLM:
    """An NPT directory (or hub id) as it is; a Llama as V1 with zero adapters, which is exact.

    Raises:
        CheckpointError: see `npt_core.checkpoint`.
    """
    folder = resolve_folder(source)
    model = load_checkpoint(folder, dtype, attn_implementation)
    if read_model_type(folder) == NPTConfig.model_type:
        return model
    return _convert(model, "all", "v1", None, None, seed=0)


def convert_llama_to_npt(
    source: Source,
    layers: LayerSpec = "all",
    variant: NPTVariant = "v1",
    rank: int | None = None,
    modulation_type: ModulationType | None = None,
    seed: int = 0,
) -> NPTForCausalLM:
    """A copy of `source` (Llama or NPT; a model, directory or hub id) with `layers` converted.

    Layers that are not named keep their variant and adapter. A new adapter starts with
    `A ~ N(0, d^-1/2)` and zero `B` in V1 (the function of the model does not change), and
    with `B_add ~ N(0, 0.02)`, `B_mult = 0` in V2, which must then be trained. An adapter that
    modulates is kept when its layer changes variant, unless rank or type change too. `rank` and
    `modulation_type` default to those of the source if it is an NPT, else to `NPTConfig`'s.
    Each layer draws from its own generator, so a layer's start does not depend on the others.
    A bank attached to `source` is not copied.

    Raises:
        ValueError: unknown layers or variant, bad rank or modulation type, or one that differs
            from adapters that stay.
        CheckpointError: `source` is a path that cannot be loaded.
    """
    if isinstance(source, (str, Path)):
        model = load_checkpoint(source)
    elif isinstance(source, NPTForCausalLM):
        model = _copied(source)
    else:
        model = _plain_npt(source)
    return _convert(model, layers, variant, rank, modulation_type, seed)


def convert_npt_to_llama(model: NPTForCausalLM) -> LlamaForCausalLM:
    """A copy of `model` as a plain Llama.

    Raises:
        ValueError: a layer is V2, has an adapter that modulates, or has plastic weights.
    """
    for index, layer in enumerate(model.model.layers):
        if reason := _not_llama(layer):
            raise ValueError(f"layer {index} {reason}: it has no equal in a plain Llama")
    values = model.config.to_dict()
    for name in ("model_type", "architectures", "npt_layers", "adapter_rank", "modulation_type"):
        values.pop(name, None)
    weights = {name: w for name, w in model.state_dict().items() if ".mlp.adapter." not in name}
    return _filled(LlamaForCausalLM(LlamaConfig(**values)), model, weights)  # type: ignore[no-any-return]


def _convert(
    model: NPTForCausalLM,
    layers: LayerSpec,
    variant: NPTVariant,
    rank: int | None,
    modulation_type: ModulationType | None,
    seed: int,
) -> NPTForCausalLM:
    """Convert `model` itself; every check comes before the first change."""
    config = model.config
    chosen = resolve_layers(layers, config.num_hidden_layers)
    wanted = NPTConfig(
        num_hidden_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        npt_layers={**config.npt_layers, **{str(layer): variant for layer in chosen}},
        adapter_rank=config.adapter_rank if rank is None else rank,
        modulation_type=modulation_type or config.modulation_type,
    )
    _check_same_shape(config, wanted, {int(layer) for layer in config.npt_layers} - set(chosen))
    same = _adapter_shape(config) == _adapter_shape(wanted)
    config.npt_layers = wanted.npt_layers
    config.adapter_rank, config.modulation_type = wanted.adapter_rank, wanted.modulation_type
    for index in chosen:
        _convert_layer(model.model.layers[index], config, variant, same, seed + index)
    return model


def _convert_layer(
    layer: NPTDecoderLayer, config: NPTConfig, variant: NPTVariant, same_shape: bool, seed: int
) -> None:
    layer.variant = variant
    old = layer.mlp.adapter
    if old is not None and same_shape and not old.is_neutral():
        return
    # Drawn in fp32 on the CPU, so that a seed means the same weights on every device.
    adapter = Adapter(config, variant)
    adapter.reset_parameters(torch.Generator().manual_seed(seed))
    weight = layer.mlp.gate_proj.weight
    layer.mlp.adapter = adapter.to(device=weight.device, dtype=weight.dtype).train(layer.training)


def _check_same_shape(config: NPTConfig, wanted: NPTConfig, staying: set[int]) -> None:
    if staying and _adapter_shape(config) != _adapter_shape(wanted):
        raise ValueError(
            f"layers {sorted(staying)} keep adapters of rank {config.adapter_rank} "
            f"({config.modulation_type}); rank and modulation_type are one for the whole model"
        )


def _adapter_shape(config: NPTConfig) -> tuple[int, str]:
    return config.adapter_rank, config.modulation_type


def _copied(source: NPTForCausalLM) -> NPTForCausalLM:
    model = copy.deepcopy(source)
    for layer in model.model.layers:
        # A bank belongs to the model it was attached to, and its keys to that model's states.
        layer.mlp.plastic = None
    return model


def _plain_npt(source: LlamaForCausalLM) -> NPTForCausalLM:
    model = NPTForCausalLM(npt_config(source.config))
    return _filled(model, source, source.state_dict())  # type: ignore[no-any-return]


def _filled(model: Any, source: Any, weights: dict[str, torch.Tensor]) -> Any:
    """`model` with a copy of `weights`, in the dtype, mode and settings of `source`."""
    model.to(device=source.device, dtype=source.dtype)
    model.load_state_dict(weights)
    # Its frequencies are no weights: a cast of the whole model would round them to bf16.
    model.model.rotary_emb = copy.deepcopy(source.model.rotary_emb)
    model.model.rotary_emb.config = model.config
    model.generation_config = copy.deepcopy(source.generation_config)
    model.set_attn_implementation(source.config._attn_implementation)
    return model.train(source.training)


def _not_llama(layer: NPTDecoderLayer) -> str | None:
    if layer.mlp.plastic is not None:
        return "has plastic weights attached"
    if layer.variant == "v2":
        return "is V2"
    if layer.mlp.adapter is not None and not layer.mlp.adapter.is_neutral():
        return "has an adapter that modulates"
    return None
