"""The compiled kernels as the `Kernels` of a forward."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from npt_core.engine.kernels import Kernels, rotated
from npt_core.engine.native.library import Library
from npt_core.engine.weights import Norm
from npt_core.layers import Modulation


def supports(model: Any) -> bool:
    """Whether the kernels compute an `NPTForCausalLM`: in float32, on a CPU, gated by SiLU."""
    weight = model.model.embed_tokens.weight
    activation = model.model.layers[0].mlp.act_fn
    silu = isinstance(activation, nn.SiLU) or model.config.hidden_act in ("silu", "swish")
    return weight.dtype == torch.float32 and not weight.is_cuda and silu


def native_kernels(library: Library) -> Kernels:
    """What lies between products, compiled."""
    return Kernels(rotated, partial(_added, library), partial(_gated, library))


def _added(library: Library, x: Tensor, y: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    return library.added_norm(x, y, norm.weight, norm.epsilon)


def _gated(
    library: Library, g: Tensor, up: Tensor, modulation: Modulation | None, scale: float | Tensor | None
) -> Tensor:
    add, mult = (None, None) if modulation is None else modulation
    if isinstance(scale, float):
        scale = g.new_full((len(g),), scale)
    return library.gate(g, up, add, mult, scale)
