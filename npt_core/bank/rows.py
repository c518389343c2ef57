"""Rows of equal meaning with their lifetimes, and who wrote them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from npt_core.bank.vector import Vector

ALIVE = torch.iinfo(torch.int64).max
"""`died` of a row that nothing has retracted."""

SLACK = 4
"""Rows that no version needs are dropped once they are one in so many: each drop copies the rest."""


class Birth(NamedTuple):
    """Rows of one owner that begin to live at version `born`; of equals, those of the smallest `order` count
    as first.
    """

    owner: int
    order: int
    born: int
    parts: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Rows:
    """A table, immutable: a publication makes a new one, which shares all that did not change.

    Rows stand in the order of publication, so `born` ascends. `version` is the last one at which the
    table changed.
    """

    parts: tuple[Vector, ...]
    born: Vector
    died: Vector
    owner: Vector
    order: Vector
    version: int = 0

    @classmethod
    def of(cls, parts: Iterable[Vector]) -> Self:
        """A table without rows; `parts` say what its rows will be like."""
        given = tuple(parts)
        none = Vector.of(torch.zeros(0, dtype=torch.int64, device=given[0].rows.device))
        return cls(given, none, none, none, none)

    def __len__(self) -> int:
        return len(self.born)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The rows of each part, `[n, ...]`."""
        return tuple(part.rows for part in self.parts)

    def ended(self, owners: Sequence[int], version: int) -> Self:
        """The living rows of `owners` die at `version`."""
        if not owners or not len(self):
            return self
        died, owner = self.died.rows, self.owner.rows
        # `isin` takes several times as long, and a rollback of one fact waits for it in each layer.
        ended = owner == owners[0] if len(owners) == 1 else torch.isin(owner, owner.new_tensor(owners))
        ends = ended & (died == ALIVE)
        if not ends.any():
            return self
        return replace(self, died=Vector.of(torch.where(ends, version, died)), version=version)

    def extended(self, parts: Iterable[Tensor], owner: int, version: int) -> Self:
        """New rows of one owner, born at `version`."""
        return self.joined([Birth(owner, 0, version, tuple(parts))])

    def joined(self, births: Sequence[Birth]) -> Self:
        """The rows of all `births`, which ascend by version, are added; costs nothing for older rows."""
        counts = [birth.parts[0].shape[0] for birth in births]
        total = sum(counts)
        if not total:
            return self
        added = [torch.cat(part) for part in zip(*(birth.parts for birth in births), strict=True)]
        like = self.born.rows
        each = [birth for birth, count in zip(births, counts, strict=True) for _ in range(count)]
        owners, orders, born = (like.new_tensor([birth[i] for birth in each]) for i in range(3))
        return replace(
            self,
            parts=tuple(old.extended(new.to(old.rows)) for old, new in zip(self.parts, added, strict=True)),
            born=self.born.extended(born),
            died=self.died.extended(like.new_full((total,), ALIVE)),
            owner=self.owner.extended(owners),
            order=self.order.extended(orders),
            version=each[-1].born,
        )

    def retained(self, oldest: int) -> Self:
        """Without rows that no version from `oldest` on sees, if there are enough of them."""
        gone = self.died.rows <= oldest
        dead = int(gone.sum())
        if not dead or SLACK * dead < len(self):
            return self
        kept = (~gone).nonzero()[:, 0]

        def only(vector: Vector) -> Vector:
            return Vector.of(vector.rows[:0]).extended(vector.rows[kept])

        return replace(
            self,
            parts=tuple(map(only, self.parts)),
            born=only(self.born),
            died=only(self.died),
            owner=only(self.owner),
            order=only(self.order),
        )

    def born_by(self, version: int) -> int:
        """How many rows, from the first on, were born at `version` or before."""
        if version >= self.version:
            return len(self)
        return int(torch.searchsorted(self.born.rows, version, right=True))

    def visible(self, version: int | Tensor) -> Tensor:
        """`[n]` for one version, `[B, n]` for versions `[B]`."""
        at = version[:, None] if isinstance(version, Tensor) else version
        return (self.born.rows <= at) & (at < self.died.rows)
