"""One layer of the bank as a GPU's steps read it: every tensor stays at its place while facts are written,
and no number on the device is looked at.

A captured step replays kernels on the addresses and shapes that it was captured with. So it reads whole
rooms of the tables, used or not, with one lifetime for each row; what no version sees is masked. A
publication writes into the room behind what was there, and `follow` copies the lifetimes after it. Only
when room grows, when rows are dropped, or when a fold makes `down_proj` anew, must a step be captured
again: what `follow` returns tells.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from npt_core.bank.bases import Base, Bases, Product
from npt_core.bank.factors import FactorTable
from npt_core.bank.layer import PlasticLayer
from npt_core.bank.matching import ColumnTable, Whitening, best_columns
from npt_core.bank.rows import Rows
from npt_core.bank.weights import Site

ROWS = 256
"""Rows of one search: scores of a long prompt against a full bank would take gigabytes at once."""

Places = tuple[Tensor, ...]
"""Tensors that a captured step reads; the same objects, as long as it may be replayed."""


class ResidentLayer:
    """The `Plastic` of one layer for steps whose rows have versions `[B]`, on the device."""

    def __init__(self) -> None:
        self._columns: _Columns | None = None
        self._factors: dict[Site, _Factors] = {}
        self._bases: Bases = (Base(0, None),)
        self._newest: Tensor | None = None

    def follow(self, layer: PlasticLayer | None, oldest: int, newest: int) -> Places:
        """Takes in what was published to `layer`; the rows of the next step are of the versions `oldest`
        to `newest`.
        """
        if layer is None:
            self._columns, self._factors = None, {}
            self._bases, self._newest = (Base(0, None),), None
            return ()
        self._columns = _followed_columns(self._columns, layer)
        for site, table in layer.factors.items():
            self._factors[site] = _followed_factors(self._factors.get(site), table)
        self._bases = _asked(layer.bases, oldest, newest)
        self._newest = layer.bases[-1].matrix if layer.bases else None
        places = [base.matrix for base in self._bases if base.matrix is not None]
        places += self._columns.places if self._columns else ()
        return (*places, *(place for factors in self._factors.values() for place in factors.places))

    @property
    def current(self) -> bool:
        """Whether all rows of the next step read the newest generation of `down_proj`."""
        return len(self._bases) == 1 and self._bases[0].matrix is self._newest

    @property
    def gates(self) -> bool:
        """Whether there is room for gate factors."""
        return bool(self._factors)

    def gate(self, n: Tensor, g: Tensor, weights_version: Tensor) -> Tensor:
        """`g` `[B, d_ffn]` with the visible gate factors applied to `n` `[B, d]`."""
        return self._factors["gate_proj"].added_to(g, n, weights_version) if self._factors else g

    def project(self, product: Product, z: Tensor, weights_version: Tensor) -> Tensor:
        """`z` `[B, d_ffn]` by `down_proj` as each row's version has it."""
        y = product(z, self._bases[0].matrix)
        for base in self._bases[1:]:
            y = torch.where((weights_version >= base.born)[:, None], product(z, base.matrix), y)
        return y

    def down(self, z: Tensor, y: Tensor, weights_version: Tensor) -> Tensor:
        """`y` `[B, d]` with visible factors, and the best visible column that fires on `z`."""
        if self._factors:
            y = self._factors["down_proj"].added_to(y, z, weights_version)
        return y if self._columns is None else self._columns.added_to(y, z, weights_version)


class _Columns:
    """The room of a table of columns. Lifetimes end by a copy: those of the table lie elsewhere then."""

    def __init__(self, table: ColumnTable, whitening: Whitening) -> None:
        self._table: ColumnTable | None = None
        self._room = _room(table)
        self._whitening = whitening
        self._died = torch.zeros_like(table.born.room)  # nobody sees a row that died at 0

    @property
    def places(self) -> Places:
        return (*self._room, self._died)

    def holds(self, table: ColumnTable) -> bool:
        """Whether the rows of `table` lie in this room."""
        return all(a is b for a, b in zip(self._room, _room(table), strict=True))

    def take(self, table: ColumnTable) -> None:
        if table is not self._table:
            self._died[: len(table)].copy_(table.died.rows)
            self._table = table

    def added_to(self, y: Tensor, z: Tensor, version: Tensor) -> Tensor:
        keys, values, thresholds, born, order = self._room
        add = _compiled_value_added() if y.is_cuda else _value_added
        whitening = self._whitening
        return torch.cat(
            [
                add(
                    part, inputs, whitening.mean, whitening.projection, keys, values, thresholds, born,
                    self._died, order, at,
                )
                for part, inputs, at in zip(
                    y.split(ROWS), z.split(ROWS), version.split(ROWS), strict=True
                )
            ]
        )  # fmt: skip


class _Factors:
    """A copy of a table of factors with room to spare, zero where there is none: zero times whatever lies
    in unused memory need not be zero.
    """

    def __init__(self, table: FactorTable) -> None:
        self._table: FactorTable | None = None
        room = len(table.born.room) if len(table) else 0
        self._left, self._right = (part.new_zeros(room, *part.shape[1:]) for part in table.tensors)
        self._born, self._died = (part.rows.new_zeros(room) for part in (table.born, table.died))

    @property
    def places(self) -> Places:
        return self._left, self._right, self._born, self._died

    def holds(self, table: FactorTable) -> bool:
        """Whether the rows of `table` fit, and are those that are here and more."""
        known = self._table
        if known is None or len(table) > len(self._left) or len(table) < len(known):
            return False
        return known is table or known.born.room is table.born.room

    def take(self, table: FactorTable) -> None:
        if table is not self._table:
            targets = (self._left, self._right, self._born, self._died)
            sources = (*table.tensors, table.born.rows, table.died.rows)
            for target, source in zip(targets, sources, strict=True):
                target[: len(table)].copy_(source)
            self._table = table

    def added_to(self, y: Tensor, x: Tensor, version: Tensor) -> Tensor:
        if not len(self._left):
            return y
        seen = (self._born <= version[:, None]) & (version[:, None] < self._died)
        low = (x.float() @ self._right.T) * seen
        return y + (low @ self._left).to(y.dtype)


def _followed_columns(columns: _Columns | None, layer: PlasticLayer) -> _Columns | None:
    table, whitening = layer.columns, layer.whitening
    if not len(table) or whitening is None:
        return None
    if columns is None or not columns.holds(table):
        columns = _Columns(table, whitening)
    columns.take(table)
    return columns


def _followed_factors(factors: _Factors | None, table: FactorTable) -> _Factors:
    if factors is None or not factors.holds(table):
        factors = _Factors(table)
    factors.take(table)
    return factors


def _room(table: Rows) -> Places:
    return (*(part.room for part in table.parts), table.born.room, table.order.room)


def _asked(bases: Bases, oldest: int, newest: int) -> Bases:
    """The generations that versions from `oldest` to `newest` read; the first may be the model's own."""
    first = next((base for base in reversed(bases) if base.born <= oldest), Base(oldest, None))
    return (first, *(base for base in bases if oldest < base.born <= newest))


def _value_added(
    y: Tensor,
    z: Tensor,
    mean: Tensor,
    projection: Tensor,
    keys: Tensor,
    values: Tensor,
    thresholds: Tensor,
    born: Tensor,
    died: Tensor,
    order: Tensor,
    version: Tensor,
) -> Tensor:
    """`y` `[rows, d]` with the value of the column that fires on each `z` `[rows, d_ffn]`, if any."""
    key = Whitening(mean, projection).key(z)
    hit, column = best_columns(key, keys, thresholds, born, died, order, version[:, None])
    return torch.where(hit[:, None], y + values[column].to(y.dtype), y)


@cache
def _compiled_value_added() -> Callable[..., Tensor]:
    """Compiled at its first use, for any number of rows and columns."""
    return torch.compile(_value_added, dynamic=True, fullgraph=True)
