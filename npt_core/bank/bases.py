"""`down_proj` with facts folded into it: generations, each valid from some version on.

The model's own weights are never written. A fold puts `original + delta` into a buffer of its own, and
readers of older versions go on with what they had.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Product(Protocol):
    """`z` `[B, ..., d_ffn]` times the matrix `[d_ffn, d]` of a generation; `None`: the model's own."""

    def __call__(self, z: Tensor, matrix: Tensor | None, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Base:
    """What `down_proj` is from version `born` on: `matrix` `[d_ffn, d]`, or the model's own."""

    born: int
    matrix: Tensor | None


Bases = tuple[Base, ...]
"""Generations, `born` ascending; before the first one, the model's own. Empty if nothing was folded."""


@torch.no_grad()
def folded(weight: Tensor, delta: Tensor) -> Tensor:
    """`weight + delta` `[d, d_ffn]`, in float64, rounded once to the dtype of `weight`."""
    return (weight.double() + delta.to(weight.device)).to(weight.dtype)


def matrix_at(bases: Bases, version: int) -> Tensor | None:
    """The generation that `version` reads."""
    return next((base.matrix for base in reversed(bases) if base.born <= version), None)


def succeeded(bases: Bases, version: int, matrix: Tensor | None) -> Bases:
    """`matrix` is what `version` reads and those after it."""
    unchanged = matrix is None and (not bases or bases[-1].matrix is None)
    return bases if unchanged else (*bases, Base(version, matrix))


def retained(bases: Bases, oldest: int) -> Bases:
    """Without generations that no version from `oldest` on reads."""
    later = tuple(base for base in bases if base.born > oldest)
    current = matrix_at(bases, oldest)
    return later if current is None else (Base(oldest, current), *later)


def project(bases: Bases, product: Product, z: Tensor, versions: Tensor) -> Tensor:
    """`z` `[B, ..., d_ffn]` to `[B, ..., d]`, each request by the generation that its version, one of
    `[B]`, reads.

    Each generation that is asked for is multiplied with the whole batch: a product over some of the rows
    could round differently.
    """
    asked = versions.tolist()
    matrices = {id(matrix): matrix for matrix in (matrix_at(bases, version) for version in asked)}
    products = {key: product(z, matrix) for key, matrix in matrices.items()}
    y = products.popitem()[1]
    for key, other in products.items():
        reads = torch.tensor([id(matrix_at(bases, version)) == key for version in asked], device=z.device)
        y = torch.where(reads.view(-1, *[1] * (z.dim() - 1)), other, y)
    return y
