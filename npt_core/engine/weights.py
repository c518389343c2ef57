"""The matrices of a model, laid out for flattened batches of tokens.

Maps that read the same input become one matrix `[in, out]`: fewer, larger products, and rows of a
product come out the same, bit for bit, whatever the other rows are (see `MAX_ROWS`). On a CPU these
are copies of the model's weights, so they take that memory again; `ModelWeights.refresh` copies anew
what was changed in place. On a GPU, where memory is short and a product reads a matrix as fast either
way, the model's own weights become parts of the fused matrices instead.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from npt_core.layers import Modulation
from npt_core.native import Library, Matrix, Panels, gather

MIN_ROWS = 2 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 4
MAX_ROWS = 128
"""Rows of one product. For one row MKL takes another kernel, without AVX-512 for up to three, and from about
200 on it splits the sum over the inputs between its threads: all would round differently.
"""


class UnsupportedModel(Exception):
    """The runner cannot compute this model; the message says why."""


class Fused:
    """`x -> [x W_1^T + b_1, x W_2^T + b_2, ...]` for linear maps of one input."""

    def __init__(self, linears: Sequence[Any], library: Library | None = None) -> None:
        for linear in linears:
            if not isinstance(linear, nn.Linear):
                raise UnsupportedModel(f"{type(linear).__name__} where a linear map was expected")
        self._linears: list[nn.Linear] = list(linears)
        self.widths = [linear.out_features for linear in self._linears]
        self._library = library
        self._matrix: Tensor | Panels | None = None
        self._bias: Tensor | None = None
        self._folded = WeakTensorKeyDictionary()
        self.load()

    @torch.no_grad()
    def load(self) -> None:
        """Copy the weights as they are now; on a GPU, share them, once for all."""
        weights = [linear.weight for linear in self._linears]
        if not weights[0].is_cuda:
            self._lay(torch.cat(weights).T)
        elif self._matrix is None:
            self._matrix = stacked(self._linears).T
        biases: list[Tensor | None] = [linear.bias for linear in self._linears]
        if any(bias is not None for bias in biases):
            parts = zip(biases, self._linears, strict=True)
            zeros = (b if b is not None else w.weight.new_zeros(w.out_features) for b, w in parts)
            self._bias = torch.cat(list(zeros))

    @property
    def parameters(self) -> list[Tensor]:
        """The originals."""
        return [p for linear in self._linears for p in linear.parameters()]

    def __call__(self, x: Tensor, matrix: Tensor | None = None) -> Tensor:
        """`[rows, in]` to `[rows, out]`; at least `MIN_ROWS` rows for exact results.

        `matrix` `[in, out]` may stand for the weights.
        """
        rows, bias = x.shape[0], self._bias
        laid = self._matrix if matrix is None else self._stand_in(matrix)
        assert laid is not None  # loaded when it was made
        if isinstance(laid, Panels):
            return laid.times(x, bias)
        if rows <= MAX_ROWS or x.is_cuda:
            return _product(x, laid, bias)
        return torch.cat([_product(part, laid, bias) for part in x.chunk(-(-rows // MAX_ROWS))])

    @property
    def panels(self) -> Panels:
        """The weights, where there are kernels."""
        assert isinstance(self._matrix, Panels)
        return self._matrix

    @property
    def matrix(self) -> Matrix:
        """As kernels read the weights; valid until they are loaded again."""
        return self.panels.matrix(self._bias)

    def _lay(self, matrix: Tensor) -> None:
        """Keep `matrix` `[in, out]` as its product reads it."""
        if self._library is None:
            self._matrix = matrix.contiguous()
        elif isinstance(self._matrix, Panels):
            self._matrix.fill(matrix)
        else:
            self._matrix = Panels.of(self._library, matrix)

    def _stand_in(self, matrix: Tensor) -> Tensor | Panels:
        """`matrix` as the weights are laid out, so that it rounds as they do; once for each that is alive."""
        if self._library is None:
            return matrix
        panels: Panels | None = self._folded.get(matrix)
        if panels is None:
            panels = self._folded[matrix] = Panels.of(self._library, matrix)
        return panels


class Chained(Fused):
    """`x -> W_2 (W_1 x + b_1)` as one map: one product instead of two, and fewer weights to read.

    Multiplied out in float64 and rounded once, it is as near to the exact result as the two in a row.
    """

    @torch.no_grad()
    def load(self) -> None:
        """Multiply the weights as they are now."""
        first, second = self._linears
        weight, bias = second.weight.double(), cast(Tensor | None, first.bias)
        self._lay((weight @ first.weight.double()).T.to(first.weight.dtype))
        self._bias = None if bias is None else (weight @ bias.double()).to(bias.dtype)


def stacked(linears: Sequence[nn.Linear]) -> Tensor:
    """The weights of all `linears` in one matrix `[out, in]`, of which each of them becomes a part."""
    if len(linears) == 1:
        return linears[0].weight.data
    whole = torch.cat([linear.weight.data for linear in linears])
    parts = whole.split([linear.out_features for linear in linears])
    for linear, part in zip(linears, parts, strict=True):
        linear.weight.data = part
    return whole


def _product(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(x, matrix) if bias is None else torch.addmm(bias, x, matrix)


class Norm:
    """Root-mean-square normalisation over the last dimension."""

    def __init__(self, module: Any, library: Library | None = None) -> None:
        self._library = library
        self.weight: Tensor = module.weight
        self.epsilon: float = module.variance_epsilon
        self.load()

    @torch.no_grad()
    def load(self) -> None:
        """Copy the weight as it is now; on a GPU it is read where it lies."""
        if self.weight.is_cuda:
            return
        width = self.weight.shape[0]
        self._gain: Tensor = self.weight * math.sqrt(width)
        self._floor = self.weight.new_tensor(math.sqrt(width * self.epsilon), dtype=torch.float32)

    @property
    def parameters(self) -> list[Tensor]:
        """The originals."""
        return [self.weight]

    def __call__(self, x: Tensor) -> Tensor:
        if self._library is not None:
            return self._library.norm(x, self.weight, self.epsilon)
        if x.is_cuda:
            return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)
        # x / sqrt(|x|^2 + d eps) sqrt(d) w: the same, in calls that take a tenth of its time on a CPU.
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return (x / torch.hypot(length, self._floor)).to(x.dtype) * self._gain


class LayerWeights:
    """What one decoder layer computes with; plain Llama, v1 and v2."""

    def __init__(self, layer: Any, library: Library | None) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = Fused([attention.q_proj, attention.k_proj, attention.v_proj], library)
        self.gate_up = Fused([mlp.gate_proj, mlp.up_proj], library)
        self.down = Fused([mlp.down_proj], library)
        self.input_norm = Norm(layer.input_layernorm, library)
        self.mlp_norm = Norm(layer.post_attention_layernorm, library)
        self.mlp = mlp  # its `plastic` is looked up at every step: a bank may be attached later
        self.residual = layer.variant != "v2"
        adapter = mlp.adapter
        self.o: Fused | None = Fused([attention.o_proj], library)
        self.low: Fused | None = None if adapter is None else Fused([adapter.A], library)
        if adapter is not None and not self.residual:
            # In V2 the adapter alone reads what attention gives.
            self.o, self.low = None, Chained([attention.o_proj, adapter.A], library)
        heads = [] if adapter is None else [h for h in (adapter.B_add, adapter.B_mult) if h is not None]
        self.modulate: Fused | None = Fused(heads, library) if heads else None
        self.additive = adapter is not None and adapter.B_add is not None
        self.multiplicative = adapter is not None and adapter.B_mult is not None
        whole_panels = library is not None and mlp.gate_proj.out_features % library.panel == 0
        self._library = library if whole_panels else None

    def modulation(self, a: Tensor) -> Modulation | None:
        """What `a` `[rows, d]` does to the gate: the attention output, before `o_proj` in V2."""
        if self.low is None or self.modulate is None:
            return None
        parts = self.modulate(self.low(a)).split(self.modulate.widths, -1)
        return Modulation(parts[0] if self.additive else None, parts[-1] if self.multiplicative else None)

    def neurons(self, n: Tensor, a: Tensor, scale: float | Tensor | None) -> Tensor | None:
        """What `down_proj` reads, `[rows, d_ffn]`, by one kernel, if there is one: of the MLP's input `n`
        `[rows, d]`, and of `a` as `modulation` reads it; `scale` is a number or `[rows, 1]`.
        """
        if self._library is None:
            return None
        modulation = None
        if self.low is not None and self.modulate is not None:
            modulation = self.low.matrix, self.modulate.matrix, self.additive, self.multiplicative
        if isinstance(scale, float):
            scale = n.new_full((len(n),), scale)
        return self._library.neurons(n, self.gate_up.matrix, a, modulation, scale)

    @property
    def copies(self) -> list[Fused | Norm]:
        """What must be loaded again where the model's weights were changed in place."""
        norms = [self.input_norm, self.mlp_norm]
        parts = (self.qkv, self.o, self.gate_up, self.down, self.low, self.modulate, *norms)
        return [part for part in parts if part is not None]


class ModelWeights:
    """All layers, the head and the tables of an `NPTForCausalLM`; laid out for `library` if there is one."""

    def __init__(self, model: Any, positions: int, library: Library | None = None) -> None:
        core = model.model
        self.embedding: Tensor = core.embed_tokens.weight
        self.layers = [LayerWeights(layer, library) for layer in core.layers]
        self.activation = core.layers[0].mlp.act_fn
        self.norm = Norm(core.norm, library)
        self.head = Fused([model.lm_head], library)
        self.cos, self.sin = _rotary_tables(core.rotary_emb, positions, self.embedding)
        self._copies = [self.head, self.norm, *(part for layer in self.layers for part in layer.copies)]
        if library is not None:
            gather([part.panels for part in self._copies if isinstance(part, Fused)])
        self._parameters = [p for part in self._copies for p in part.parameters]
        self._stamp = self._stamps()

    def refresh(self) -> bool:
        """Copy again what was changed in place since it was copied; whether there was anything."""
        stamp = self._stamps()
        if stamp == self._stamp:
            return False
        for part in self._copies:
            part.load()
        self._stamp = stamp
        return True

    def _stamps(self) -> list[int]:
        return [parameter._version for parameter in self._parameters]


@torch.no_grad()
def _rotary_tables(rotary: Any, positions: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine `[positions, 1, head_dim]`: `x cos + flip(x) sin` rotates `x`."""
    if "dynamic" in rotary.rope_type or rotary.rope_type == "longrope":
        raise UnsupportedModel(f"rope type {rotary.rope_type}: angles depend on the batch's longest text")
    cos, sin = rotary(like, position_ids=torch.arange(positions, device=like.device)[None])
    half = sin.shape[-1] // 2
    signed = torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
    return cos[0, :, None].contiguous(), signed[0, :, None].contiguous()
