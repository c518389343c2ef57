"""The model over a flattened batch, every token at the weights version of its sequence.

The same formulas as `npt_core.layers`, over `[rows, d]` instead of `[B, T, d]`, without padding,
and without the per-call work of a general-purpose forward: at small sizes that is most of the time.
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from functools import partial
from typing import Generic, NamedTuple, Protocol, TypeVar

from torch import Tensor
from torch.nn import functional as F

from npt_core.engine.kernels import Kernels
from npt_core.engine.weights import LayerWeights, ModelWeights
from npt_core.layers import Plastic

Mix = Callable[[int, Tensor], Tensor]
"""Layer and queries `[rows, heads, head_dim]` to what attention mixes, `[rows, heads * head_dim]`."""
Attend = Callable[[int, Tensor], Tensor]
"""Layer and what its attention reads, `[rows, d]`, to what attention mixes; keys and values are written."""


Watch = Callable[[int, Tensor, Tensor], None]
"""Hears of each layer what its `down_proj` reads, `[rows, d_ffn]`, and what it gives, `[rows, d]`; of the
last layer for the chosen rows alone, if there are any.
"""


def nothing() -> None:
    """Nothing goes between."""


def nobody(_layer: int, _key: Tensor, _output: Tensor) -> None:
    """Nobody watches."""


class Rows(Protocol):
    """A batch: one row a token. `versions` and `scales` are one value if all rows agree."""

    @property
    def ids(self) -> Tensor: ...

    @property
    def positions(self) -> Tensor: ...

    @property
    def slots(self) -> Tensor:
        """Where keys and values of each row go."""

    @property
    def versions(self) -> int | Tensor: ...

    @property
    def scales(self) -> float | Tensor | None: ...


class Conditions(NamedTuple):
    """At which version each row is computed, and how much attention modulates it; see `Rows`."""

    versions: int | Tensor
    scales: float | Tensor | None

    def of(self, rows: Tensor) -> "Conditions":
        """Those of `rows` `[n]` alone."""
        versions, scales = self
        return Conditions(
            versions[rows] if isinstance(versions, Tensor) else versions,
            scales[rows] if isinstance(scales, Tensor) else scales,
        )


B = TypeVar("B", bound=Rows)
B_contra = TypeVar("B_contra", bound=Rows, contravariant=True)


class Memory(Protocol[B_contra]):
    """Keys and values of every layer."""

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put keys and values `[rows, kv_heads, head_dim]` into `slots` `[rows]`."""

    def mixing(self, batch: B_contra, /) -> Mix:
        """Attention of the rows of `batch`, over what was written until it is called."""


class Attention(Protocol[B_contra]):
    """Attention with all that belongs to it."""

    def attending(self, batch: B_contra, /) -> Attend:
        """Attention of the rows of `batch`."""


class RotaryAttention(Generic[B]):
    """Attention as its parts: projections, the rotary embedding, keys and values into memory, then `Mix`."""

    def __init__(self, memory: Memory[B], weights: ModelWeights, kernels: Kernels, heads: int) -> None:
        self._memory, self._weights, self._kernels, self._heads = memory, weights, kernels, heads
        self._width = weights.cos.shape[-1]

    def attending(self, batch: B) -> Attend:
        """See `Attention`."""
        rotary = self._weights.cos[batch.positions], self._weights.sin[batch.positions]
        return partial(self._attend, batch, self._memory.mixing(batch), rotary)

    def _attend(self, batch: B, mix: Mix, rotary: tuple[Tensor, Tensor], layer: int, n: Tensor) -> Tensor:
        heads = self._weights.layers[layer].qkv(n).view(len(n), -1, self._width)
        kv_heads = (heads.shape[1] - self._heads) // 2
        rotated, v = heads.split([self._heads + kv_heads, kv_heads], 1)
        rotated = self._kernels.rotated(rotated, *rotary)
        q, k = rotated.split([self._heads, kv_heads], 1)
        self._memory.write(layer, batch.slots, k, v)
        return mix(layer, q)


class Forward(Generic[B]):
    """Computes hidden states and logits of an `NPTForCausalLM`."""

    def __init__(self, weights: ModelWeights, attention: Attention[B], kernels: Kernels) -> None:
        self._weights, self._attention, self._kernels = weights, attention, kernels

    def hidden(
        self,
        batch: B,
        plastics: Seq[Plastic | None],
        between: Callable[[], None] = nothing,
        chosen: Tensor | None = None,
        watch: Watch = nobody,
    ) -> Tensor:
        """Hidden states `[rows, d]` before the last norm, or of the `chosen` rows `[n]`, for which alone the
        last MLP is computed; `plastics` is what facts add to each layer. `between` is called three times a
        layer: before attention, the gate, and `down_proj`.
        """
        weights, kernels = self._weights, self._kernels
        attend = self._attention.attending(batch)
        x = F.embedding(batch.ids, weights.embedding)
        n, conditions = weights.layers[0].input_norm(x), Conditions(batch.versions, batch.scales)
        following = [*(layer.input_norm for layer in weights.layers[1:]), None]
        for index, (layer, after) in enumerate(zip(weights.layers, following, strict=True)):
            between()
            # Before `o_proj` in V2.
            a = attend(index, n)
            if layer.o is not None:
                a = layer.o(a)
            between()
            if after is None and chosen is not None:
                x, a, conditions = x[chosen], a[chosen], conditions.of(chosen)
                if not len(x):
                    return x
            x, n = kernels.added(x, a, layer.mlp_norm) if layer.residual else (x, layer.mlp_norm(x))
            z = self._neurons(layer, plastics[index], n, a, conditions)
            between()
            y = _projected(layer, plastics[index], z, conditions.versions)
            x, n = (x + y, n) if after is None else kernels.added(x, y, after)
            watch(index, z, x)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Hidden states `[rows, d]` to logits `[rows, vocab]`, in the dtype of the model."""
        return self._weights.head(self._weights.norm(x))

    def _neurons(
        self, layer: LayerWeights, plastic: Plastic | None, n: Tensor, a: Tensor, conditions: Conditions
    ) -> Tensor:
        """What `down_proj` reads, `[rows, d_ffn]`: by one kernel or in parts, with the same bits."""
        if plastic is None or not plastic.gates:
            z = layer.neurons(n, a, conditions.scales)
            if z is not None:
                return z
        g, up = layer.gate_up(n).split(layer.gate_up.widths, -1)
        if plastic is not None:
            g = plastic.gate(n, g, conditions.versions)
        return self._kernels.gated(g, up, layer.modulation(a), conditions.scales)


def _projected(layer: LayerWeights, plastic: Plastic | None, z: Tensor, versions: int | Tensor) -> Tensor:
    """What the MLP gives, `[rows, d]`, of what `down_proj` reads."""
    if plastic is None:
        return layer.down(z)
    y = plastic.project(layer.down, z, versions)
    return plastic.down(z, y, versions)
