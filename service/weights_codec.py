"""The weights of a fact as bytes: safetensors, so that reading them runs nothing."""

from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from npt_core.bank import BankError, FactWeights, Fold
from service.runtime import Weights


class UndecodableWeights(Exception):
    """The bytes are intact but are not the weights of a fact."""


def encode(weights: Weights) -> bytes:
    """Bytes that are the same for the same weights."""
    return save({name: tensor.detach().cpu() for name, tensor in weights.to_tensors().items()})


def decode(data: bytes) -> FactWeights:
    """The inverse of `encode`.

    Raises:
        UndecodableWeights: not safetensors, or not what a fact writes.
    """
    try:
        return FactWeights.from_tensors(load(data))
    except (SafetensorError, BankError, ValueError) as error:
        raise UndecodableWeights(str(error)) from error


def encode_snapshot(facts: Mapping[str, Weights]) -> bytes:
    """What serving needs of many facts, by their ids: not the inputs of columns, most of their bytes, which
    only a fold reads, from the blobs of facts themselves.

    All tensors of one name follow each other in one, with the shape of each: to read thousands of small ones
    takes longer than to split a large one.
    """
    ids = sorted(facts)
    parts = [_served(facts[id_]) for id_ in ids]
    saved = {_IDS: torch.tensor(list("\n".join(ids).encode()), dtype=torch.uint8)}
    for name in sorted({name for each in parts for name in each}):
        given = [each.get(name) for each in parts]
        saved[name] = torch.cat([tensor.flatten() for tensor in given if tensor is not None])
        saved[f"{name}{_SHAPES}"] = torch.tensor([_shape(tensor) for tensor in given])
    return save(saved)


_IDS, _SHAPES = "facts", ".shapes"
_NONE = -1
_INPUTS = ".inputs"


def _served(weights: Weights) -> dict[str, Tensor]:
    tensors = weights.to_tensors()
    return {name: tensor.detach().cpu() for name, tensor in tensors.items() if not name.endswith(_INPUTS)}


def _shape(tensor: Tensor | None) -> tuple[int, int]:
    """Rows and their width, which a vector has none of."""
    if tensor is None:
        return _NONE, _NONE
    return len(tensor), tensor.shape[1] if tensor.ndim > 1 else _NONE


def decode_snapshot(data: bytes) -> dict[str, FactWeights]:
    """The inverse of `encode_snapshot`; inputs of columns are `[n, 0]`.

    Raises:
        UndecodableWeights: not safetensors, or no snapshot.
    """
    try:
        saved = load(data)
        text = bytes(saved.pop(_IDS).tolist()).decode()
        ids = text.split("\n") if text else []
        parts: list[dict[str, Tensor]] = [{} for _ in ids]
        for name in [name for name in saved if not name.endswith(_SHAPES)]:
            for part, tensor in zip(parts, _split(saved[name], saved[f"{name}{_SHAPES}"]), strict=True):
                if tensor is not None:
                    part[name] = tensor
        for part in parts:
            part |= {
                f"{name.removesuffix('.keys')}{_INPUTS}": keys.new_empty(len(keys), 0)
                for name, keys in part.items()
                if name.endswith(".keys")
            }
        return {id_: FactWeights.from_tensors(part) for id_, part in zip(ids, parts, strict=True)}
    except (SafetensorError, BankError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UndecodableWeights(str(error)) from error


def _split(whole: Tensor, shapes: Tensor) -> list[Tensor | None]:
    """The tensors that follow each other in `whole`, each as its own memory would be."""
    rows_of, width_of = shapes.unbind(-1)
    given = list(zip(rows_of.tolist(), width_of.tolist(), strict=True))
    sizes = [max(rows, 0) * (1 if width == _NONE else width) for rows, width in given]
    return [
        None if rows == _NONE else (flat if width == _NONE else flat.view(rows, width))
        for flat, (rows, width) in zip(whole.split(sizes), given, strict=True)
    ]


def encode_fold(fold: Fold) -> bytes:
    """Bytes that are the same for the same fold."""
    return save({name: tensor.cpu() for name, tensor in fold.to_tensors().items()})


def decode_fold(data: bytes) -> Fold:
    """The inverse of `encode_fold`.

    Raises:
        UndecodableWeights: not safetensors, or no fold.
    """
    try:
        return Fold.from_tensors(load(data))
    except (SafetensorError, BankError, ValueError) as error:
        raise UndecodableWeights(str(error)) from error
