"""What lies between the products of a layer: small operations, which a GPU computes best as one.

On a CPU they run as they are written: `torch.compile` costs more there than it saves (lab notebook,
2026-11-25). On a GPU each of them is compiled into one or two kernels, with a variable number of rows:
one compilation serves prompts and every size of decoding batch, whose graphs replay kernels and never
look at guards.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from npt_core.engine.weights import Norm
from npt_core.layers import Modulation

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Kernels:
    """The operations, as written or compiled."""

    rotated: Callable[[Tensor, Tensor, Tensor], Tensor]
    added: Callable[[Tensor, Tensor, Norm], tuple[Tensor, Tensor]]
    gated: Callable[[Tensor, Tensor, Modulation | None, float | Tensor | None, Activation], Tensor]

    @classmethod
    def plain(cls) -> Self:
        return cls(rotated, added, gated)

    @classmethod
    def compiled(cls, backend: str = "inductor") -> Self:
        """For a GPU; compiled at the first use of each."""

        def one(function: Callable[..., object]) -> Callable[..., object]:
            return torch.compile(function, dynamic=True, fullgraph=True, backend=backend)

        add, gate = one(_added_rms), one(_gated)

        def added_rms(x: Tensor, y: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
            return add(x, y, norm.weight, norm.epsilon)  # type: ignore[return-value]

        def gated_parts(
            g: Tensor,
            up: Tensor,
            modulation: Modulation | None,
            scale: float | Tensor | None,
            activation: Activation,
        ) -> Tensor:
            add, mult = modulation or (None, None)
            return gate(g, up, add, mult, scale, activation)  # type: ignore[return-value]

        return cls(one(rotated), added_rms, gated_parts)  # type: ignore[arg-type]


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
    g: Tensor, up: Tensor, modulation: Modulation | None, scale: float | Tensor | None, activation: Activation
) -> Tensor:
    """`act(g modulated) * up`, all `[rows, d_ffn]`; `scale` is a number or `[rows, 1]`."""
    return activation(g if modulation is None else modulation.apply(g, scale)).mul_(up)


def _added_rms(x: Tensor, y: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    total = x + y
    return total, F.rms_norm(total, weight.shape, weight, epsilon)


def _gated(
    g: Tensor,
    up: Tensor,
    add: Tensor | None,
    mult: Tensor | None,
    scale: float | Tensor | None,
    activation: Activation,
) -> Tensor:
    return activation(Modulation(add, mult).apply(g, scale)) * up
