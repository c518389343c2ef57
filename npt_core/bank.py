"""What facts add to the weights, and which version sees which of it.

A fact lives in plastic columns (a key, a value, a threshold) and, under the original rules, in
rank-one factors. Every row carries `[born, died)`: version v sees a row iff `born <= v < died`.
Publishing builds new tables and swaps one reference per layer, so a reader never takes a lock, and
a request that names its version gets the same rows to its last token, whatever is published
meanwhile.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Site = Literal["gate_proj", "down_proj"]
ALIVE = torch.iinfo(torch.int64).max
"""`died` of a row that nothing has retracted."""
BLOCK = 128
"""Tokens of one product with factors, always: with any other number the sums round differently,
and an answer would depend on who else is answered.
"""


class BankError(Exception):
    """A publication that the bank refuses; nothing was changed."""


@dataclass(frozen=True)
class Whitening:
    """Key space of one layer: `key(z) = normalise((z - mean) @ projection)`.

    `mean` `[d_ffn]`, `projection` `[d_ffn, p]`: the inverse square root of the covariance at
    surprising positions, times a seeded random projection.
    """

    mean: Tensor
    projection: Tensor

    def key(self, z: Tensor) -> Tensor:
        """Unit keys `[..., p]`, float32, of MLP activations `z` `[..., d_ffn]`."""
        return F.normalize((z.float() - self.mean) @ self.projection, dim=-1)


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
    def num_columns(self) -> int:
        """Columns over all layers."""
        return sum(len(c.keys) for c in self.columns.values())


@dataclass(frozen=True)
class _Rows:
    """Rows of equal meaning with their lifetimes and owners; immutable.

    The bank keeps rows in the order of fact names: sums and ties come out the same whatever the
    order of publication.
    """

    parts: tuple[Tensor, ...]
    born: Tensor
    died: Tensor
    owner: Tensor

    @classmethod
    def empty(cls, widths: Iterable[tuple[int, ...]], like: Tensor) -> Self:
        none = torch.zeros(0, dtype=torch.int64, device=like.device)
        return cls(tuple(like.new_zeros(0, *w, dtype=torch.float32) for w in widths), none, none, none)

    def __len__(self) -> int:
        return len(self.born)

    def ended(self, owners: Tensor, version: int) -> Self:
        """The living rows of `owners` die at `version`."""
        ends = torch.isin(self.owner, owners) & (self.died == ALIVE)
        return replace(self, died=torch.where(ends, version, self.died))

    def extended(self, parts: Iterable[Tensor], owner: int | Tensor, version: int) -> Self:
        """New rows, born at `version`; `owner` for all of them, or `[n]`."""
        added = [p.to(old) for p, old in zip(parts, self.parts, strict=True)]

        def more(value: int | Tensor) -> Tensor:
            return torch.as_tensor(value).to(self.born).expand(len(added[0]))

        return replace(
            self,
            parts=tuple(torch.cat([old, new]) for old, new in zip(self.parts, added, strict=True)),
            born=torch.cat([self.born, more(version)]),
            died=torch.cat([self.died, more(ALIVE)]),
            owner=torch.cat([self.owner, more(owner)]),
        )

    def joined(self, births: Sequence[tuple[int, tuple[Tensor, ...]]], version: int, rank: Tensor) -> Self:
        """The rows of all `births` `(owner, parts)` added, and everything put in order of `rank`."""
        if not births:
            return self
        owners = [torch.full((len(parts[0]),), owner) for owner, parts in births]
        together = [torch.cat(part) for part in zip(*(p for _, p in births), strict=True)]
        rows = self.extended(together, torch.cat(owners), version)
        place = rank.to(rows.owner.device)[rows.owner]
        order = torch.argsort(place, stable=True)
        return replace(
            rows,
            parts=tuple(part[order] for part in rows.parts),
            born=rows.born[order],
            died=rows.died[order],
            owner=rows.owner[order],
        )

    def visible(self, version: int | Tensor) -> Tensor:
        """`[rows]` for one version, `[B, 1, rows]` for a version per request."""
        if isinstance(version, Tensor):
            version = version.to(self.born.device).view(-1, 1, 1)
        return (self.born <= version) & (version < self.died)


class PlasticLayer:
    """What one layer's MLP adds at a version; the `mlp.plastic` of the model."""

    def __init__(self, d_model: int, d_ffn: int, whitening: Whitening | None, like: Tensor) -> None:
        self.whitening = whitening
        width = 0 if whitening is None else whitening.projection.shape[1]
        self.columns = _Rows.empty([(width,), (d_model,), ()], like)
        self.factors: dict[Site, _Rows] = {
            "gate_proj": _Rows.empty([(d_ffn,), (d_model,)], like),
            "down_proj": _Rows.empty([(d_model,), (d_ffn,)], like),
        }
        self.newest = 0

    def gate(self, n: Tensor, g: Tensor, weights_version: int | Tensor | None) -> Tensor:
        """`g` `[B, T, d_ffn]` with the visible gate factors applied to `n` `[B, T, d]`."""
        return self._with_factors("gate_proj", n, g, weights_version)

    def down(self, z: Tensor, y: Tensor, weights_version: int | Tensor | None) -> Tensor:
        """`y` `[B, T, d]` with visible factors, and the best visible column that fires on `z`."""
        y = self._with_factors("down_proj", z, y, weights_version)
        table, whitening = self.columns, self.whitening
        if not len(table) or whitening is None:
            return y
        keys, values, thresholds = table.parts
        scores = whitening.key(z) @ keys.T
        version = self.newest if weights_version is None else weights_version
        fires = (scores > thresholds) & table.visible(version)
        best, index = scores.masked_fill(~fires, -2.0).max(dim=-1)
        hit = best > -2.0
        if not hit.any():
            return y
        return torch.where(hit[..., None], y + values[index].to(y.dtype), y)

    def _with_factors(self, site: Site, x: Tensor, y: Tensor, weights_version: int | Tensor | None) -> Tensor:
        table = self.factors[site]
        if not len(table):
            return y
        version = self.newest if weights_version is None else weights_version
        if not isinstance(version, Tensor):
            return y + _update(table, x, version).to(y.dtype)
        version = version.to(y.device).view(-1, 1, 1)
        for each in version.unique().tolist():
            y = torch.where(version == each, y + _update(table, x, each).to(y.dtype), y)
        return y


def _update(table: _Rows, x: Tensor, version: int) -> Tensor:
    """`(x right^T) left` of the visible rows alone.

    A row that is multiplied by zero would still change how the others are summed, and with it bits.
    """
    seen = table.visible(version)
    left, right = (part if seen.all() else part[seen] for part in table.parts)
    tokens = x.float().reshape(-1, x.shape[-1])
    full = (F.pad(block, (0, 0, 0, BLOCK - len(block))) for block in tokens.split(BLOCK))
    update = torch.cat([(block @ right.T) @ left for block in full])[: len(tokens)]
    return update.view(*x.shape[:-1], -1)


class Bank:
    """The plastic layers of one model, and the versions published to them.

    `whitening` names the layers that may hold columns; every layer may hold factors.
    """

    def __init__(self, model: nn.Module, whitening: Mapping[int, Whitening]) -> None:
        self._mlps = [layer.mlp for layer in model.model.layers]  # type: ignore[union-attr]
        self.layers = [
            PlasticLayer(
                mlp.down_proj.out_features,
                mlp.down_proj.in_features,
                whitening.get(i),
                mlp.down_proj.weight,
            )
            for i, mlp in enumerate(self._mlps)
        ]
        self._owners: dict[str, int] = {}
        self._alive: set[str] = set()
        self.version = 0

    def attach(self) -> Self:
        """Makes the model read this bank; the model then serves `version` unless told otherwise."""
        for mlp, layer in zip(self._mlps, self.layers, strict=True):
            mlp.plastic = layer
        return self

    @property
    def facts(self) -> frozenset[str]:
        """The facts alive at the newest version."""
        return frozenset(self._alive)

    def num_columns(self, version: int | None = None) -> int:
        """Columns that a version sees, over all layers."""
        seen = self.version if version is None else version
        return sum(int(layer.columns.visible(seen).sum()) for layer in self.layers)

    def publish(self, version: int, births: Mapping[str, FactWeights], deaths: Collection[str] = ()) -> None:
        """Makes `version` the newest: `deaths` end, `births` begin (again, after a rollback).

        Raises BankError, and changes nothing, where `check` does.
        """
        self.check(version, births, deaths)
        ending = self.layers[0].columns.owner.new_tensor([self._owners[f] for f in deaths])
        born = [(self._owners.setdefault(f, len(self._owners)), w) for f, w in births.items()]
        rank = self._rank()
        for index, layer in enumerate(self.layers):
            columns = [
                (owner, (new.keys, new.values, new.thresholds))
                for owner, weights in born
                if (new := weights.columns.get(index)) is not None
            ]
            factors = {
                site: [
                    (owner, (more.left, more.right))
                    for owner, weights in born
                    if (more := weights.factors.get((index, site))) is not None
                ]
                for site in layer.factors
            }
            layer.columns = layer.columns.ended(ending, version).joined(columns, version, rank)
            layer.factors = {
                site: rows.ended(ending, version).joined(factors[site], version, rank)
                for site, rows in layer.factors.items()
            }
        self._alive = (self._alive - set(deaths)) | set(births)
        for layer in self.layers:
            layer.newest = version
        self.version = version

    def _rank(self) -> Tensor:
        """The place of each owner's name among all names, `[owners]`."""
        rank = torch.empty(len(self._owners), dtype=torch.int64)
        for place, name in enumerate(sorted(self._owners)):
            rank[self._owners[name]] = place
        return rank

    def check(self, version: int, births: Mapping[str, FactWeights], deaths: Collection[str] = ()) -> None:
        """Raises BankError if the version is not newer, a fact to die is not alive, one to be born is, or
        its weights do not fit the model: what `publish` would refuse, before anything is stored.
        """
        if version <= self.version:
            raise BankError(f"version {version} is not newer than {self.version}")
        if missing := set(deaths) - self._alive:
            raise BankError(f"not alive: {sorted(missing)}")
        if twice := (set(births) & self._alive) - set(deaths):
            raise BankError(f"already alive: {sorted(twice)}")
        for fact, weights in births.items():
            self._check_fit(fact, weights)

    def _check_fit(self, fact: str, weights: FactWeights) -> None:
        for index, columns in weights.columns.items():
            if not 0 <= index < len(self.layers) or self.layers[index].whitening is None:
                raise BankError(f"fact {fact}: layer {index} holds no columns in this model")
            shapes = [tuple(p.shape[1:]) for p in self.layers[index].columns.parts]
            given = [tuple(p.shape[1:]) for p in (columns.keys, columns.values, columns.thresholds)]
            if given != shapes:
                raise BankError(f"fact {fact}, layer {index}: columns {given} do not fit {shapes}")
            _check_rows(fact, index, columns.keys, columns.values, columns.thresholds)
        for (index, site), factors in weights.factors.items():
            if not 0 <= index < len(self.layers):
                raise BankError(f"fact {fact}: there is no layer {index}")
            shapes = [tuple(p.shape[1:]) for p in self.layers[index].factors[site].parts]
            if [tuple(p.shape[1:]) for p in (factors.left, factors.right)] != shapes:
                raise BankError(f"fact {fact}, layer {index}: {site} factors do not fit {shapes}")
            _check_rows(fact, index, factors.left, factors.right)


def _check_rows(fact: str, index: int, *parts: Tensor) -> None:
    if len({len(part) for part in parts}) > 1:
        raise BankError(f"fact {fact}, layer {index}: rows of its parts do not fit each other")
