"""The Neuro-Plastic decoder layer: attention modulates the MLP through a low-rank adapter.

With `a = Attn(LN1(x))` and `add, mult = Adapter(a)`, scaled by `s` (1 unless told otherwise):

    plain  h = x + a;  n = LN2(h);  y = h + MLP(n)
    v1     h = x + a;  n = LN2(h);  y = h + MLP(n; add, mult)
    v2                 n = LN2(x);  y = x + MLP(n; add, mult)

    MLP(n; add, mult) = W_d(act(g) * W_u n),  g = (W_g n) * (1 + s mult) + s add

A zero adapter leaves `g` as it was, bit for bit, so v1 with zero adapters is the base Llama.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from npt_core.bank import Product
from npt_core.config import ModulationType, NPTConfig
from npt_core.sharding import local, share_of

B_ADD_STD = 0.02
"""Start of `B_add` in a v2 layer: large enough that attention reaches the stream at once."""

WeightsVersion = int | Tensor | None
ModulationScale = float | Tensor | None


class Modulation(NamedTuple):
    """What attention does to the gate. Each part is `[..., d_ffn]`, or `None` if not configured."""

    add: Tensor | None
    mult: Tensor | None

    def apply(self, gate: Tensor, scale: ModulationScale = None) -> Tensor:
        """`gate * (1 + s mult) + s add`; `scale` is a number or `[B]`, `None` means 1."""
        add, mult = _scaled(self.add, scale), _scaled(self.mult, scale)
        if mult is None:
            return gate if add is None else gate + add
        return gate * (1 + mult) if add is None else torch.addcmul(add, gate, 1 + mult)

    def change(self, gate: Tensor) -> Tensor:
        """`gate * mult + add`, what `apply` changes at scale 1, in fp32 or wider.

        Subtracting `gate` from the result of `apply` instead would cancel most digits in bf16.
        """
        wide = torch.promote_types(gate.dtype, torch.float32)
        change = torch.zeros_like(gate, dtype=wide)
        if self.mult is not None:
            change = gate.to(wide) * self.mult.to(wide)
        return change if self.add is None else change + self.add.to(wide)


class RankOne(NamedTuple):
    """The update `dW = left right^T` of a gate: `left` `[d_ffn]`, `right` `[d]`, fp32 or wider."""

    left: Tensor
    right: Tensor

    def added_to(self, weight: Tensor) -> Tensor:
        """`weight + dW`, `[d_ffn, d]`, rounded once to the weight's own dtype."""
        return (weight + torch.outer(self.left, self.right)).to(weight.dtype)


class Plastic(Protocol):
    """What learned facts add to an MLP; rows are masked by the version each request holds."""

    @property
    def gates(self) -> bool:
        """Whether there is a version for which `gate` changes anything."""

    def gate(self, n: Tensor, g: Tensor, weights_version: WeightsVersion) -> Tensor:
        """The gate `g` `[B, ..., d_ffn]` with the updates visible at the version added."""

    def project(self, product: Product, z: Tensor, weights_version: WeightsVersion) -> Tensor:
        """`z` `[B, ..., d_ffn]` to `[B, ..., d]` by `down_proj` as it is at the version."""

    def down(self, z: Tensor, y: Tensor, weights_version: WeightsVersion) -> Tensor:
        """The output `y` `[B, ..., d]` for key `z` `[B, ..., d_ffn]`, with visible columns added."""


class AdapterLinear(nn.Linear):
    """A map without bias whose weight starts as `N(0, std)`, or as zero where `std` is 0."""

    std = 0.0

    def __init__(self, inputs: int, outputs: int, std: float) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.std = std
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start anew; a weight that `from_pretrained` has already loaded is left alone."""
        init.normal_(self.weight, 0.0, self.std, generator)


class Adapter(nn.Module):
    """Rank-r map from attention output to gate modulation: `l = A a; B_add l; B_mult l`.

    Starts with `A ~ N(0, d^-1/2)` and `B_mult = 0`. `B_add` is 0 in v1, which makes the layer
    exactly the base model's, and `N(0, 0.02)` in v2, where the adapter is the only way from
    attention to the stream.
    """

    def __init__(self, config: NPTConfig, variant: str) -> None:
        super().__init__()
        d, d_ffn, rank = config.hidden_size, config.intermediate_size, config.adapter_rank
        kind, add_std = config.modulation_type, B_ADD_STD if variant == "v2" else 0.0
        self.A = AdapterLinear(d, rank, d**-0.5)
        self.B_add = None if kind == "multiplicative" else AdapterLinear(rank, d_ffn, add_std)
        self.B_mult = None if kind == "additive" else AdapterLinear(rank, d_ffn, 0.0)

    def forward(self, attn: Tensor) -> Modulation:
        low = self.A(attn)
        add = None if self.B_add is None else self.B_add(low)
        mult = None if self.B_mult is None else self.B_mult(low)
        return Modulation(add, mult)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Start anew, drawing from `generator`."""
        for part in (self.A, self.B_add, self.B_mult):
            if part is not None:
                part.reset_parameters(generator)

    def is_neutral(self) -> bool:
        """Whether the adapter modulates nothing, whatever it is given."""
        heads = [head for head in (self.B_add, self.B_mult) if head is not None]
        return not self.A.weight.any() or not any(bool(head.weight.any()) for head in heads)


class NPTMLP(LlamaMLP):
    """The gated MLP of Llama with two seams: the adapter's modulation and the plastic bank."""

    def __init__(self, config: NPTConfig, variant: str) -> None:
        super().__init__(config)  # type: ignore[no-untyped-call]
        self.adapter = None if variant == "llama" else Adapter(config, variant)
        # For hooks: `down_proj` is not called where facts are folded into it.
        self.key = nn.Identity()
        # Facts live here at run time; they are versioned state, not parameters of the model.
        self.plastic: Plastic | None = None

    def forward(
        self,
        n: Tensor,
        attn: Tensor | None = None,
        weights_version: WeightsVersion = None,
        modulation_scale: ModulationScale = None,
    ) -> Tensor:
        """`n` `[B, T, d]` normed input, `attn` `[B, T, d]` attention output (unused in a plain
        layer); `weights_version` an int or long `[B]`, `modulation_scale` a float or `[B]`.
        Returns `[B, T, d]`.
        """
        g = self._gate(n, weights_version)
        if self.adapter is not None and attn is not None:
            g = self.adapter(attn).apply(g, modulation_scale)
        z = self.key(self.act_fn(g) * self.up_proj(n))
        if self.plastic is None:
            return self._product(z, None)
        y = self.plastic.project(self._product, z, weights_version)
        return self.plastic.down(z, y, weights_version)

    def _product(self, z: Tensor, matrix: Tensor | None) -> Tensor:
        """`z` by `down_proj`, or by a matrix `[d_ffn, d]` that stands for its weight."""
        if matrix is None:
            y: Tensor = self.down_proj(z)
            return y
        share, bias = share_of(self.down_proj), cast(Tensor | None, self.down_proj.bias)
        if share is None:
            return F.linear(z, matrix.T, bias)
        y = share.total(F.linear(z, matrix.T))
        return y if bias is None else y + local(bias)

    def _gate(self, n: Tensor, weights_version: WeightsVersion) -> Tensor:
        g: Tensor = self.gate_proj(n)
        return g if self.plastic is None else self.plastic.gate(n, g, weights_version)

    def modulation_strength(
        self,
        n: Tensor,
        attn: Tensor,
        weights_version: WeightsVersion = None,
        modulation_scale: ModulationScale = None,
    ) -> Tensor:
        """The share by which modulation changes the gate of each token, `[B, T]`:
        `|s (g * mult + add)| / |g|`, with `g` the gate before it. Arguments as for `forward`.

        Raises:
            ValueError: the layer has no adapter.
        """
        if self.adapter is None:
            raise ValueError("a plain Llama layer modulates nothing")
        g = self._gate(n, weights_version)
        add, mult = self.adapter(attn)
        scaled = Modulation(_scaled(add, modulation_scale), _scaled(mult, modulation_scale))
        change = scaled.change(g)
        size = g.to(change.dtype).norm(dim=-1).clamp(min=torch.finfo(change.dtype).tiny)
        strength: Tensor = change.norm(dim=-1) / size
        return strength

    @torch.no_grad()
    def rank_one(self, n: Tensor, attn: Tensor, alpha: float, part: ModulationType = "both") -> RankOne:
        """The modulation of one token, or one `part` of it, as an update of `gate_proj`.

        `dW = alpha [(W_g n) * mult + add] n^T / |n|^2` for `n`, `attn` `[d]`: at `alpha` 1 the
        gate of this token without context becomes what the context made it.

        Raises:
            ValueError: the layer has no adapter, or `n` is zero.
        """
        if self.adapter is None:
            raise ValueError("a plain Llama layer has no modulation to consolidate")
        add, mult = self.adapter(attn[None, None])
        modulation = Modulation(
            None if part == "multiplicative" else add, None if part == "additive" else mult
        )
        change = modulation.change(self._gate(n[None, None], None))[0, 0]
        right = n.to(change.dtype)
        square = right.square().sum()
        if not square > 0:
            raise ValueError("the MLP input at this token is zero: no rank-one update exists")
        return RankOne(alpha * change, right / square)


class NPTDecoderLayer(GradientCheckpointingLayer):
    """One decoder layer, plain Llama, v1 or v2 as `config.variant(layer_idx)` says."""

    def __init__(self, config: NPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.hidden_size = config.hidden_size
        self.variant = config.variant(layer_idx)
        self.self_attn = LlamaAttention(config=config, layer_idx=layer_idx)
        self.mlp = NPTMLP(config, self.variant)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        weights_version: WeightsVersion = None,
        modulation_scale: ModulationScale = None,
        **kwargs: Any,
    ) -> Tensor:
        """`hidden_states` `[B, T, d]` to `[B, T, d]`; the last two arguments go to the MLP."""
        residual, attn = self._attend(
            hidden_states,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            position_embeddings=position_embeddings,
            **kwargs,
        )
        n = self.post_attention_layernorm(residual)
        output: Tensor = residual + self.mlp(n, attn, weights_version, modulation_scale)
        return output

    def _attend(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """What the MLP reads and adds to, and the attention output; both `[B, T, d]`."""
        attn, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        return (hidden_states if self.variant == "v2" else hidden_states + attn), attn

    @torch.no_grad()
    def consolidate_weights(
        self,
        context_tokens: Tensor,
        token_idx: int = -1,
        alpha: float = 0.1,
        *,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        apply: bool = True,
    ) -> RankOne:
        """Turn the modulation at one token into an update of this layer's `gate_proj`.

        `context_tokens` `[1, T, d]` are the layer's input hidden states. Without
        `position_embeddings` (cos and sin, `[1, T, head_dim]`) positions are `0 .. T - 1`.
        With `apply` the update is added in place; the factors are returned either way.

        Raises:
            ValueError: wrong shape, a token index outside the context, or no adapter here.
        """
        _check_context(context_tokens, self.hidden_size, token_idx)
        positions = torch.arange(context_tokens.shape[1], device=context_tokens.device)[None]
        if position_embeddings is None:
            rotary = LlamaRotaryEmbedding(self.config).to(context_tokens.device)
            position_embeddings = rotary(context_tokens, positions)
        mask = create_causal_mask(self.config, context_tokens, None, None, positions)
        residual, attn = self._attend(
            context_tokens, attention_mask=mask, position_embeddings=position_embeddings
        )
        n = self.post_attention_layernorm(residual)
        update = self.mlp.rank_one(n[0, token_idx], attn[0, token_idx], alpha)
        if apply:
            self.mlp.gate_proj.weight.copy_(update.added_to(self.mlp.gate_proj.weight))
        return update


def _scaled(part: Tensor | None, scale: ModulationScale) -> Tensor | None:
    if part is None or scale is None:
        return part
    if isinstance(scale, Tensor):
        # One number per request, `[B]`, against `[B, T, d_ffn]`.
        scale = scale.to(part).view(-1, *[1] * (part.dim() - 1))
    return part * scale


def _check_context(context: Tensor, hidden_size: int, token_idx: int) -> None:
    if context.dim() != 3 or context.shape[0] != 1 or context.shape[2] != hidden_size:
        raise ValueError(f"context_tokens must be [1, T, {hidden_size}], got {list(context.shape)}")
    length = context.shape[1]
    if not -length <= token_idx < length:
        raise ValueError(f"token_idx {token_idx} is outside a context of {length} tokens")
