"""What one fact writes, as plain tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Self

import torch
from torch import Tensor

Site = Literal["gate_proj", "down_proj"]


class BankError(Exception):
    """What the bank refuses; nothing was changed."""


@dataclass(frozen=True)
class Columns:
    """The plastic columns of one fact in one layer: `n` rows, float32."""

    keys: Tensor  # [n, p], unit length
    values: Tensor  # [n, d], added to the MLP output
    thresholds: Tensor  # [n], cosine above which the column fires
    inputs: Tensor  # [n, d_ffn], the activation behind each key; folding needs it, serving does not


@dataclass(frozen=True)
class Factors:
    """Rank-one updates of one matrix: `y += (x @ right^T) @ left`; float32."""

    left: Tensor  # [n, out]
    right: Tensor  # [n, in]


@dataclass(frozen=True)
class FactWeights:
    """Everything that one fact writes: columns by layer, factors by (layer, site)."""

    columns: Mapping[int, Columns] = field(default_factory=dict)
    factors: Mapping[tuple[int, Site], Factors] = field(default_factory=dict)

    def to_tensors(self) -> dict[str, Tensor]:
        """Named contiguous tensors for safetensors."""
        tensors: dict[str, Tensor] = {}
        for layer, columns in self.columns.items():
            for name in ("keys", "values", "thresholds", "inputs"):
                tensors[f"columns.{layer}.{name}"] = getattr(columns, name).contiguous()
        for (layer, site), factors in self.factors.items():
            tensors[f"factors.{layer}.{site}.left"] = factors.left.contiguous()
            tensors[f"factors.{layer}.{site}.right"] = factors.right.contiguous()
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `to_tensors`. Raises BankError for tensors it did not write."""
        columns: dict[int, dict[str, Tensor]] = {}
        factors: dict[tuple[int, Site], dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            match name.split("."):
                case ["columns", layer, part] if layer.isdecimal():
                    columns.setdefault(int(layer), {})[part] = tensor
                case ["factors", layer, ("gate_proj" | "down_proj") as site, part] if layer.isdecimal():
                    factors.setdefault((int(layer), site), {})[part] = tensor
                case _:
                    raise BankError(f"unknown tensor {name!r} in the weights of a fact")
        try:
            return cls(
                {layer: Columns(**parts) for layer, parts in columns.items()},
                {key: Factors(**parts) for key, parts in factors.items()},
            )
        except TypeError as error:
            raise BankError(f"incomplete weights of a fact: {error}") from error

    @property
    def layers(self) -> frozenset[int]:
        """Layers that hold anything."""
        return frozenset((*self.columns, *(layer for layer, _ in self.factors)))

    @property
    def num_columns(self) -> int:
        """Columns over all layers."""
        return sum(c.keys.shape[0] for c in self.columns.values())


@dataclass(frozen=True)
class Fold:
    """What is folded into `down_proj`, all of it: by layer, `delta` `[d, d_ffn]`, float64; and of which
    facts it is made, by id.
    """

    deltas: Mapping[int, Tensor]
    facts: tuple[str, ...]

    def to_tensors(self) -> dict[str, Tensor]:
        """Named contiguous tensors for safetensors."""
        ids = torch.tensor(list("\n".join(sorted(self.facts)).encode()), dtype=torch.uint8)
        return {"facts": ids} | {f"fold.{i}": delta.contiguous() for i, delta in self.deltas.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `to_tensors`. Raises BankError for tensors it did not write."""
        deltas: dict[int, Tensor] = {}
        for name, tensor in tensors.items():
            match name.split("."):
                case ["fold", layer] if layer.isdecimal():
                    deltas[int(layer)] = tensor
                case ["facts"]:
                    pass
                case _:
                    raise BankError(f"unknown tensor {name!r} in a fold")
        if "facts" not in tensors:
            raise BankError("a fold does not say of which facts it is made")
        try:
            ids = bytes(tensors["facts"].tolist()).decode()
        except (TypeError, ValueError) as error:
            raise BankError(f"unreadable ids in a fold: {error}") from error
        return cls(deltas, tuple(ids.split("\n")) if ids else ())
