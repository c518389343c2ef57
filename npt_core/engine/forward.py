"""The model over a flattened batch, every token at the weights version of its sequence.

The same formulas as `npt_core.layers`, over `[rows, d]` instead of `[B, T, d]`, without padding,
and without the per-call work of a general-purpose forward: at small sizes that is most of the time.
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor
from torch.nn import functional as F

from npt_core.engine.kernels import Kernels
from npt_core.engine.weights import LayerWeights, ModelWeights
from npt_core.layers import Plastic

Attend = Callable[[int, Tensor], Tensor]
"""Layer and queries `[rows, heads, head_dim]` to what attention mixes, `[rows, heads * head_dim]`."""


def nothing() -> None:
    """Nothing goes between."""


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


B = TypeVar("B", bound=Rows)
B_contra = TypeVar("B_contra", bound=Rows, contravariant=True)


class Memory(Protocol[B_contra]):
    """Keys and values of every layer."""

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put keys and values `[rows, kv_heads, head_dim]` into `slots` `[rows]`."""

    def attending(self, batch: B_contra, /) -> Attend:
        """Attention of the rows of `batch`, over what was written until it is called."""


class Forward(Generic[B]):
    """Computes hidden states and logits of an `NPTForCausalLM`."""

    def __init__(self, model: Any, weights: ModelWeights, memory: Memory[B], kernels: Kernels) -> None:
        self._weights, self._memory, self._kernels = weights, memory, kernels
        self._heads, self._kv_heads = model.config.num_attention_heads, model.config.num_key_value_heads
        self._width = weights.cos.shape[-1]

    def hidden(
        self, batch: B, plastics: Seq[Plastic | None], between: Callable[[], None] = nothing
    ) -> Tensor:
        """Hidden states `[rows, d]` before the last norm; `plastics` is what facts add to each layer.
        `between` is called before each attention and each MLP.
        """
        weights, kernels = self._weights, self._kernels
        attend = self._memory.attending(batch)
        rotary = weights.cos[batch.positions], weights.sin[batch.positions]
        x = F.embedding(batch.ids, weights.embedding)
        n = weights.layers[0].input_norm(x)
        following = [*(layer.input_norm for layer in weights.layers[1:]), None]
        for index, (layer, after) in enumerate(zip(weights.layers, following, strict=True)):
            between()
            a = self._attention(index, layer, n, rotary, batch, attend)
            between()
            x, n = kernels.added(x, a, layer.mlp_norm) if layer.residual else (x, layer.mlp_norm(x))
            y = self._mlp(layer, plastics[index], n, a, batch)
            x, n = (x + y, n) if after is None else kernels.added(x, y, after)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """Hidden states `[rows, d]` to logits `[rows, vocab]`, in the dtype of the model."""
        return self._weights.head(self._weights.norm(x))

    def _attention(
        self,
        index: int,
        layer: LayerWeights,
        n: Tensor,
        rotary: tuple[Tensor, Tensor],
        batch: B,
        attend: Attend,
    ) -> Tensor:
        """Attention output `[rows, d]` of the normed input `n` `[rows, d]`; before `o_proj` in V2."""
        qkv = layer.qkv(n).view(n.shape[0], -1, self._width)
        rotated, v = qkv.split([self._heads + self._kv_heads, self._kv_heads], 1)
        rotated = self._kernels.rotated(rotated, *rotary)
        q, k = rotated.split([self._heads, self._kv_heads], 1)
        self._memory.write(index, batch.slots, k, v)
        mixed = attend(index, q)
        return mixed if layer.o is None else layer.o(mixed)

    def _mlp(self, layer: LayerWeights, plastic: Plastic | None, n: Tensor, a: Tensor, batch: B) -> Tensor:
        """As `NPTMLP.forward`, for `[rows, d]`."""
        g, up = layer.gate_up(n).split(layer.gate_up.widths, -1)
        if plastic is not None:
            g = plastic.gate(n, g, batch.versions)
        z = self._kernels.gated(g, up, layer.modulation(a), batch.scales)
        if plastic is None:
            return layer.down(z)
        y = plastic.project(layer.down, z, batch.versions)
        return plastic.down(z, y, batch.versions)
