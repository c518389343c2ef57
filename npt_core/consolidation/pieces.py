"""A pass of the model in pieces of about a millisecond, so that steps of the engine wait for no more."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface
from transformers.models.llama.modeling_llama import LlamaAttention

from npt_core.model import NPTForCausalLM

PIECE = 1 << 25
"""Multiply-adds of a product that is not cut further: half a millisecond of two cores."""
MIN_ROWS = 16
"""Fewer would be bound by reading the weight again for each piece."""
ATTENTION = "sdpa_in_pieces"


def compute_in_pieces(model: NPTForCausalLM, pause: Callable[[], None]) -> None:
    """From now on `pause` is called before every part of `model` that has none of its own, after each linear
    map, before attention, and on a CPU between parts of large products. The results are the same but for
    the last bits of a sum.
    """
    for module in model.modules():
        if isinstance(module, LlamaAttention):
            module.pause = pause  # type: ignore[assignment]
        elif isinstance(module, nn.Linear):
            module.forward = partial(_linear, module, pause)  # type: ignore[method-assign]
        if next(module.children(), None) is None:
            module.register_forward_pre_hook(lambda *_: pause())
    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.config._attn_implementation = ATTENTION


def _linear(module: nn.Linear, pause: Callable[[], None], x: Tensor) -> Tensor:
    y = _product(module, pause, x)
    pause()
    return y


def _product(module: nn.Linear, pause: Callable[[], None], x: Tensor) -> Tensor:
    weight, bias = module.weight, module.bias
    rows = x.reshape(-1, x.shape[-1])
    limit = max(PIECE // weight.numel(), MIN_ROWS)
    if len(rows) <= limit or x.device.type != "cpu" or torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    y = x.new_empty(len(rows), len(weight))
    for some, into in zip(rows.split(limit), y.split(limit), strict=True):
        torch.mm(some, weight.T, out=into)
        pause()
    if bias is not None:
        y += bias
    return y.view(*x.shape[:-1], -1)


def _attention(module: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    module.pause()
    return sdpa_attention_forward(module, *args, **kwargs)
