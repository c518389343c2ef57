"""What one layer's MLP adds at a version; the `mlp.plastic` of the model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from npt_core.bank.bases import Bases, Product, matrix_at, project, retained
from npt_core.bank.factors import FactorTable
from npt_core.bank.matching import ColumnTable, Whitening
from npt_core.bank.rows import Birth
from npt_core.bank.vector import Vector
from npt_core.bank.weights import BankError, Factors, Site
from npt_core.sharding import Share


class Tables(NamedTuple):
    """What a layer's readers read, whatever their version."""

    columns: ColumnTable
    factors: Mapping[Site, FactorTable]
    bases: Bases

    def ended(self, owners: Sequence[int], version: int) -> Self:
        """The living rows of `owners` die at `version`."""
        factors = {site: table.ended(owners, version) for site, table in self.factors.items()}
        return self._replace(columns=self.columns.ended(owners, version), factors=factors)

    def joined(self, columns: Sequence[Birth], factors: Mapping[Site, Sequence[Birth]]) -> Self:
        """The rows of all births, which ascend by version, are added."""
        grown = {site: table.joined(factors[site]) for site, table in self.factors.items()}
        return self._replace(columns=self.columns.joined(columns), factors=grown)


class PlasticLayer:
    """Columns, factors and folded weights of one layer; `newest` is for readers who ask for no version.

    With a `share`, of a process that computes some of the `d_ffn` neurons: columns are whole there, as they
    are small and all processes must find the same one; what has the width of the neurons is split.
    """

    def __init__(
        self,
        d_model: int,
        d_ffn: int,
        whitening: Whitening | None,
        like: Tensor,
        share: Share | None = None,
    ) -> None:
        self.whitening = None if whitening is None else whitening.shared(share)
        self.share = share
        width = 0 if whitening is None else whitening.projection.shape[1]

        def none(*row: int) -> Vector:
            return Vector.of(like.new_zeros(0, *row, dtype=torch.float32))

        self.columns = ColumnTable.of((none(width), none(d_model), none()))
        held = d_ffn if share is None else share.width
        self.widths: dict[Site, tuple[int, int]] = {
            "gate_proj": (d_ffn, d_model),
            "down_proj": (d_model, d_ffn),
        }
        """Of `left` and `right`, as facts bring them."""
        self.factors: Mapping[Site, FactorTable] = {
            "gate_proj": FactorTable.of((none(held), none(d_model))),
            "down_proj": replace(FactorTable.of((none(d_model), none(held))), inputs=share),
        }
        self.bases: Bases = ()
        self.newest = 0
        self.oldest = 0

    @property
    def tables(self) -> Tables:
        """What readers read now."""
        return Tables(self.columns, self.factors, self.bases)

    def take(self, tables: Tables, newest: int) -> None:
        """Readers read `tables` from now on, the `newest` version unless they ask for another."""
        self.columns, self.factors, self.bases = tables
        self.newest = newest

    def held(self, site: Site, factors: Factors) -> tuple[Tensor, Tensor]:
        """`left` and `right` of a fact, as this process holds them."""
        left, right = factors.left, factors.right
        if self.share is None:
            return left, right
        return (self.share.of(left), right) if site == "gate_proj" else (left, self.share.of(right))

    @property
    def empty(self) -> bool:
        """Whether no version sees anything."""
        return not (self.columns or self.bases or any(map(len, self.factors.values())))

    @property
    def gates(self) -> bool:
        """Whether a version sees gate factors."""
        return len(self.factors["gate_proj"]) > 0

    def gate(self, n: Tensor, g: Tensor, weights_version: int | Tensor | None) -> Tensor:
        """`g` `[B, ..., d_ffn]` with the visible gate factors applied to `n` `[B, ..., d]`."""
        return self._with_factors("gate_proj", n, g, weights_version)

    def project(self, product: Product, z: Tensor, weights_version: int | Tensor | None) -> Tensor:
        """`z` `[B, ..., d_ffn]` by `down_proj` as each request's version has it: `product(z, None)` unless
        facts were folded into it.
        """
        bases = self.bases
        if not bases:
            return product(z, None)
        version = self._asked(weights_version)
        if isinstance(version, Tensor):
            return project(bases, product, z, version)
        return product(z, matrix_at(bases, version))

    def down(self, z: Tensor, y: Tensor, weights_version: int | Tensor | None) -> Tensor:
        """`y` `[B, ..., d]` with visible factors, and the best visible column that fires on `z`."""
        y = self._with_factors("down_proj", z, y, weights_version)
        table, whitening = self.columns, self.whitening
        if not len(table) or whitening is None:
            return y
        version = self._asked(weights_version)
        if not isinstance(version, Tensor) and not table.born_by(version):
            return y
        # Which column fires is no function to differentiate; what it adds is.
        key = whitening.key(z.detach().flatten(0, -2))
        if isinstance(version, Tensor):
            version = version.to(key.device).repeat_interleave(len(key) // len(version))
        return table.added_to(y.flatten(0, -2), key, version).view_as(y)

    def retire(self, oldest: int) -> None:
        """No reader asks for a version below `oldest` any more."""
        if oldest > self.oldest:
            self.oldest = oldest
            self.bases = retained(self.bases, oldest)
            self.columns = self.columns.retained(oldest)
            self.factors = {site: table.retained(oldest) for site, table in self.factors.items()}

    def _with_factors(self, site: Site, x: Tensor, y: Tensor, weights_version: int | Tensor | None) -> Tensor:
        table = self.factors[site]
        if not len(table):
            return y
        return table.added_to(y, x, self._asked(weights_version))

    def _asked(self, version: int | Tensor | None) -> int | Tensor:
        """Raises BankError for a version that was retired, where that can be seen without waiting."""
        if version is None:
            return self.newest
        if self.oldest and not (isinstance(version, Tensor) and version.is_cuda):
            least = int(version.min()) if isinstance(version, Tensor) else version
            if least < self.oldest:
                raise BankError(f"version {least} is retired, the oldest is {self.oldest}")
        return version
