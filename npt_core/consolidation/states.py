"""Activations at chosen tokens of one forward pass, taken on a private copy of the model.

The copy shares every parameter with the serving model but has modules of its own, so that the
writer's hooks and trial columns never touch a request that is being served.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain

import torch
from torch import Tensor

from npt_core.bank import Bank, PlasticLayer
from npt_core.generation import right_padded
from npt_core.model import NPTForCausalLM

Position = tuple[int, int]
"""Row and token."""
Asked = Sequence[Sequence[int]]
"""Tokens of each row, ascending."""


@dataclass(frozen=True)
class States:
    """At the `n` tokens that were `asked`, one row after the other: `logits` `[n, vocab]`, and by layer
    `keys` `[n, d_ffn]` (input of down_proj) and `outputs` `[n, d]`; float32 on the CPU.
    """

    asked: Asked
    logits: Tensor
    keys: dict[int, Tensor]
    outputs: dict[int, Tensor]

    def of(self, row: int) -> slice:
        """Where the tokens of a row are."""
        return slice(self._starts[row], self._starts[row + 1])

    def at(self, positions: Sequence[Position]) -> Tensor:
        """Where these are, `[positions]`. Raises KeyError for one that was not asked."""
        return torch.tensor([self._places[position] for position in positions], dtype=torch.int64)

    @cached_property
    def _starts(self) -> list[int]:
        return list(accumulate(map(len, self.asked), initial=0))

    @cached_property
    def _places(self) -> dict[Position, int]:
        return {position: place for place, position in enumerate(_positions(self.asked))}


def _positions(asked: Asked) -> Iterator[Position]:
    return ((row, t) for row, tokens in enumerate(asked) for t in tokens)


def everything(rows: Sequence[Sequence[int]]) -> Asked:
    """Every token of `rows`."""
    return [range(len(row)) for row in rows]


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
    layers: Sequence[int] = (),
    asked: Asked | None = None,
    bank: Bank | None = None,
    weights_version: int | None = None,
) -> States:
    """One pass over right-padded `rows`, with the states of `layers` at the tokens that are `asked`, all
    unless told. `model` reads a `bank`, if there is one, instead of its own.

    Float32 on the CPU, wherever and in whatever the model computes, because what is made of them is small,
    and a difference of two.
    """
    keys: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}
    handles = []
    for index in layers:
        layer = model.model.layers[index]
        handles.append(
            layer.mlp.key.register_forward_pre_hook(
                lambda _m, inputs, i=index: keys.__setitem__(i, inputs[0])
            )
        )
        handles.append(
            layer.register_forward_hook(lambda _m, _i, output, i=index: outputs.__setitem__(i, output))
        )
    try:
        ids = right_padded(rows).to(model.device)
        with nullcontext() if bank is None else plastic(model, bank.layers):
            logits = model(input_ids=ids, use_cache=False, weights_version=weights_version).logits
    finally:
        for handle in handles:
            handle.remove()
    asked = everything(rows) if asked is None else asked
    places = torch.tensor(list(_positions(asked)), dtype=torch.int64, device=logits.device).view(-1, 2).T

    def chosen(x: Tensor) -> Tensor:
        return x[*places].float().cpu()

    return States(
        asked,
        chosen(logits),
        {i: chosen(z) for i, z in keys.items()},
        {i: chosen(x) for i, x in outputs.items()},
    )
