"""What lies between the products of a layer: small operations, best computed as one.

On a CPU by `npt_core.native`; where there is none, as they are written: `torch.compile` costs more there
than it saves (lab notebook, 2026-11-25). On a GPU each of them is compiled into one or two kernels, with a
variable number of rows: one compilation serves prompts and every size of decoding batch, whose graphs replay
kernels and never look at guards.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from npt_core.engine.weights import Norm
from npt_core.layers import Modulation
from npt_core.native import Library, compiled

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Kernels:
    """The operations, as written or compiled; `rotated` is a part of `NativeAttention` where there is one."""

    rotated: Callable[[Tensor, Tensor, Tensor], Tensor]
    added: Callable[[Tensor, Tensor, Norm], tuple[Tensor, Tensor]]
    gated: Callable[[Tensor, Tensor, Modulation | None, float | Tensor | None], Tensor]

    @classmethod
    def plain(cls, activation: Activation) -> Self:
        """For a CPU."""
        return cls(rotated, added, partial(gated, activation))

    @classmethod
    def native(cls, library: Library) -> Self:
        """For a CPU, by compiled kernels, float32, with SiLU."""
        return cls(rotated, partial(_added_native, library), partial(_gated_native, library))

    @classmethod
    def compiled(cls, activation: Activation, backend: str = "inductor") -> Self:
        """For a GPU; compiled at the first use of each."""
        compiled = partial(torch.compile, dynamic=True, fullgraph=True, backend=backend)
        add, gate = compiled(_added_rms), compiled(partial(_gated, activation))

        def added_rms(x: Tensor, y: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
            total, normed = add(x, y, norm.weight, norm.epsilon)
            return total, normed

        def gated_parts(
            g: Tensor, up: Tensor, modulation: Modulation | None, scale: float | Tensor | None
        ) -> Tensor:
            z: Tensor = gate(g, up, *(modulation or (None, None)), scale)
            return z

        return cls(compiled(rotated), added_rms, gated_parts)


def library_for(model: Any) -> Library | None:
    """The compiled kernels, if they compute an `NPTForCausalLM`: in float32, on a CPU, gated by SiLU."""
    weight = model.model.embed_tokens.weight
    silu = model.config.hidden_act in ("silu", "swish")
    return compiled() if silu and weight.dtype == torch.float32 and not weight.is_cuda else None


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `[rows, heads, width]`; `cos` and signed `sin` `[rows, 1, width]`."""
    half = x.shape[-1] // 2
    flipped = torch.cat([x[..., half:], x[..., :half]], -1)
    return torch.addcmul(x * cos, flipped, sin)


def added(x: Tensor, y: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """`x + y` `[rows, d]`, and that normed."""
    total = x + y
    return total, norm(total)


def gated(
    activation: Activation,
    g: Tensor,
    up: Tensor,
    modulation: Modulation | None,
    scale: float | Tensor | None,
) -> Tensor:
    """`act(g modulated) * up`, all `[rows, d_ffn]`; `scale` is a number or `[rows, 1]`."""
    return activation(g if modulation is None else modulation.apply(g, scale)).mul_(up)


def _added_native(library: Library, x: Tensor, y: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    return library.added_norm(x, y, norm.weight, norm.epsilon)


def _gated_native(
    library: Library, g: Tensor, up: Tensor, modulation: Modulation | None, scale: float | Tensor | None
) -> Tensor:
    add, mult = (None, None) if modulation is None else modulation
    if isinstance(scale, float):
        scale = g.new_full((len(g),), scale)
    return library.gate(g, up, add, mult, scale)


def _added_rms(x: Tensor, y: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    total = x + y
    return total, F.rms_norm(total, weight.shape, weight, epsilon)


def _gated(
    activation: Activation,
    g: Tensor,
    up: Tensor,
    add: Tensor | None,
    mult: Tensor | None,
    scale: float | Tensor | None,
) -> Tensor:
    return activation(Modulation(add, mult).apply(g, scale)) * up
