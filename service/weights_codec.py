"""The weights of a fact as bytes: safetensors, so that reading them runs nothing."""

from collections.abc import Mapping

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
    """The weights of many facts, by their ids."""
    return save(
        {
            f"{id_}/{name}": tensor.detach().cpu()
            for id_, weights in sorted(facts.items())
            for name, tensor in weights.to_tensors().items()
        }
    )


def decode_snapshot(data: bytes) -> dict[str, FactWeights]:
    """The inverse of `encode_snapshot`.

    Raises:
        UndecodableWeights: not safetensors, or no snapshot.
    """
    try:
        tensors: dict[str, dict[str, Tensor]] = {}
        for name, tensor in load(data).items():
            id_, _, part = name.partition("/")
            tensors.setdefault(id_, {})[part] = tensor
        return {id_: FactWeights.from_tensors(parts) for id_, parts in tensors.items()}
    except (SafetensorError, BankError, ValueError) as error:
        raise UndecodableWeights(str(error)) from error


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
