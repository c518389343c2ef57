"""Activations of one forward pass, taken on a private copy of the model.

The copy shares every parameter with the serving model but has modules of its own, so that the
writer's hooks and trial columns never touch a request that is being served.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from npt_core.bank import PlasticLayer
from npt_core.generation import right_padded
from npt_core.model import NPTForCausalLM


@dataclass
class States:
    """`logits [B, T, vocab]`, and by layer `keys [B, T, d_ffn]` (input of down_proj), `outputs [B,
    T, d]`.
    """

    logits: Tensor
    keys: dict[int, Tensor]
    outputs: dict[int, Tensor]


def private_copy(model: NPTForCausalLM) -> NPTForCausalLM:
    """A model with the same tensors, its own modules, and no bank."""
    shared: dict[int, object] = {id(t): t for t in chain(model.parameters(), model.buffers())}
    for layer in model.model.layers:
        if layer.mlp.plastic is not None:
            shared[id(layer.mlp.plastic)] = None
    twin: NPTForCausalLM = copy.deepcopy(model, shared)
    for layer in twin.model.layers:
        layer.mlp.plastic = None
    twin.eval()  # type: ignore[no-untyped-call]
    return twin


@contextmanager
def plastic(model: NPTForCausalLM, layers: Sequence[PlasticLayer | None]) -> Iterator[None]:
    """Within the block, `model` reads `layers`, one per decoder layer."""
    before = [layer.mlp.plastic for layer in model.model.layers]
    for layer, new in zip(model.model.layers, layers, strict=True):
        layer.mlp.plastic = new
    try:
        yield
    finally:
        for layer, old in zip(model.model.layers, before, strict=True):
            layer.mlp.plastic = old


@torch.no_grad()
def run(
    model: NPTForCausalLM,
    rows: Sequence[Sequence[int]],
    layers: Sequence[int],
    weights_version: int | None = None,
) -> States:
    """One pass over right-padded `rows`, with the states of `layers`: float32 on the CPU, wherever and in
    whatever the model computes, because what is made of them is small, and a difference of two.
    """
    keys: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}
    handles = []
    for index in layers:
        layer = model.model.layers[index]
        handles.append(
            layer.mlp.down_proj.register_forward_pre_hook(
                lambda _m, inputs, i=index: keys.__setitem__(i, inputs[0])
            )
        )
        handles.append(
            layer.register_forward_hook(lambda _m, _i, output, i=index: outputs.__setitem__(i, output))
        )
    try:
        ids = right_padded(rows).to(model.device)
        logits = model(input_ids=ids, use_cache=False, weights_version=weights_version).logits
    finally:
        for handle in handles:
            handle.remove()
    return States(
        logits.float().cpu(),
        {i: z.float().cpu() for i, z in keys.items()},
        {i: x.float().cpu() for i, x in outputs.items()},
    )
