"""The original rule of permanent mode: one token's modulation becomes a rank-one gate update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from npt_core.config import LayerSpec, ModulationType, resolve_layers
from npt_core.layers import NPTMLP, RankOne


class StaleConsolidation(RuntimeError):
    """The weights changed since the update was applied, so it can no longer be undone exactly."""


@dataclass(frozen=True)
class Consolidation:
    """Rank-one updates by layer, and the way back.

    `factors[layer]` is `(left [d_ffn], right [d])` with `dW = left right^T`. Adding and
    subtracting `dW` would round twice, so the handle keeps the weights it replaced (one
    `gate_proj` per layer) and undoing is bit-exact.
    """

    factors: Mapping[int, RankOne]
    _mlps: Mapping[int, NPTMLP] = field(repr=False)
    _replaced: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @property
    def applied(self) -> bool:
        return bool(self._replaced)

    @torch.no_grad()
    def apply(self) -> None:
        """Add every update in place.

        Raises:
            RuntimeError: already applied.
        """
        if self.applied:
            raise RuntimeError("this consolidation is already applied")
        for layer, update in self.factors.items():
            weight = self._mlps[layer].gate_proj.weight
            self._replaced[layer] = weight.detach().clone()
            weight.copy_(update.added_to(weight))

    @torch.no_grad()
    def revert(self) -> None:
        """Put the replaced weights back, bit for bit. Undo several in reverse order.

        Raises:
            RuntimeError: not applied.
            StaleConsolidation: something else has changed these weights since.
        """
        if not self.applied:
            raise RuntimeError("this consolidation is not applied")
        for layer, before in self._replaced.items():
            expected = self.factors[layer].added_to(before)
            if not torch.equal(self._mlps[layer].gate_proj.weight, expected):
                raise StaleConsolidation(f"gate_proj of layer {layer} has changed since")
        for layer, before in self._replaced.items():
            self._mlps[layer].gate_proj.weight.copy_(before)
        self._replaced.clear()


@torch.no_grad()
def consolidate_modulation(
    model: nn.Module,
    input_ids: Tensor,
    layers: LayerSpec = "all",
    token_idx: int = -1,
    alpha: float = 0.1,
    apply: bool = True,
    part: ModulationType = "both",
) -> Consolidation:
    """Run an `NPTForCausalLM` on `input_ids` `[1, T]` and consolidate one token in each layer.

    All updates come from one pass over the unchanged model. `"all"` and `"upper_half"` take
    those of their layers that have an adapter; a plain layer named by index is an error.

    Raises:
        ValueError: wrong shape, token index outside the input, unknown layer, a named layer
            without an adapter, or no layer with one.
    """
    length = _checked_length(input_ids, token_idx)
    mlps = _selected_mlps(model, layers)
    with _recorded_inputs(mlps) as seen:
        model(input_ids=input_ids, use_cache=False)
    position = token_idx % length
    factors = {
        layer: mlp.rank_one(seen[layer][0][0, position], seen[layer][1][0, position], alpha, part)
        for layer, mlp in mlps.items()
    }
    handle = Consolidation(factors, mlps)
    if apply:
        handle.apply()
    return handle


def _checked_length(input_ids: Tensor, token_idx: int) -> int:
    if input_ids.dim() != 2 or input_ids.shape[0] != 1:
        raise ValueError(f"input_ids must be [1, T], got {list(input_ids.shape)}")
    length = input_ids.shape[1]
    if not -length <= token_idx < length:
        raise ValueError(f"token_idx {token_idx} is outside an input of {length} tokens")
    return length


def _selected_mlps(model: Any, spec: LayerSpec) -> dict[int, NPTMLP]:
    stack: Sequence[Any] = model.model.layers
    chosen = {layer: stack[layer].mlp for layer in resolve_layers(spec, len(stack))}
    plain = [layer for layer, mlp in chosen.items() if mlp.adapter is None]
    if plain and not isinstance(spec, str):
        raise ValueError(f"layers {plain} are plain Llama layers: no modulation to consolidate")
    if len(plain) == len(chosen):
        raise ValueError(f"no layer in {spec!r} has an adapter: nothing to consolidate")
    return {layer: mlp for layer, mlp in chosen.items() if mlp.adapter is not None}


@contextmanager
def _recorded_inputs(mlps: Mapping[int, NPTMLP]) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
    """Collects `(n, attn)`, `[B, T, d]` each, of every MLP called inside the block."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def record(layer: int, _: nn.Module, args: tuple[Any, ...]) -> None:
        seen[layer] = (args[0], args[1])

    hooks = [mlp.register_forward_pre_hook(partial(record, layer)) for layer, mlp in mlps.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
