"""The weights of a fact as bytes: safetensors, so that reading them runs nothing."""

from safetensors import SafetensorError
from safetensors.torch import load, save

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
