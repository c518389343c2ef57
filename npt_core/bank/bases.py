"""`down_proj` with facts folded into it: generations, each valid from some version on.

The model's own weights are never written. A fold puts `original + delta` into a buffer of its own, and
readers of older versions go on with what they had.
"""

from collections.abc import Sequence
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


def project(bases: Bases, product: Product, z: Tensor, versions: Sequence[int]) -> Tensor:
    """`z` `[B, ..., d_ffn]` to `[B, ..., d]`, each request by the generation that its version reads.

    Only generations that are asked for are multiplied, each with its own requests.
    """
    groups: dict[int, tuple[Tensor | None, list[int]]] = {}
    for row, version in enumerate(versions):
        matrix = matrix_at(bases, version)
        groups.setdefault(id(matrix), (matrix, []))[1].append(row)
    if len(groups) == 1:
        return product(z, matrix)
    order = torch.tensor([row for _, rows in groups.values() for row in rows])
    back = order.argsort().to(z.device)
    parts = z[order.to(z.device)].split([len(rows) for _, rows in groups.values()])
    done = [product(part, matrix) for part, (matrix, _) in zip(parts, groups.values(), strict=True)]
    return torch.cat(done)[back]
