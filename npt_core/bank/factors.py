"""Rank-one updates of one matrix, as a version sees them."""

from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from npt_core.bank.rows import Rows
from npt_core.sharding import Share

BLOCK = 128
"""Tokens of one product with factors, always: with any other number the sums round differently, and
an answer would depend on who else is answered.
"""
KEPT = 8
"""Versions whose updates are kept at hand; beyond, they are gathered again at every use."""


@dataclass(frozen=True, eq=False)
class FactorTable(Rows):
    """Rows `left` `[n, out]` and `right` `[n, in]`: `y += (x right^T) left` over the visible ones.

    With `inputs`, `right` and `x` hold a share of `in`.
    """

    inputs: Share | None = None
    _gathered: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def added_to(self, y: Tensor, x: Tensor, version: int | Tensor) -> Tensor:
        """`y` `[B, ..., out]` with the updates that each version sees applied to `x` `[B, ..., in]`."""
        if not isinstance(version, Tensor):
            return y + self._update(x, version).to(y.dtype)
        version = version.to(y.device).view(-1, *[1] * (y.dim() - 1))
        for each in version.unique().tolist():
            y = torch.where(version == each, y + self._update(x, each).to(y.dtype), y)
        return y

    def retained(self, oldest: int) -> Self:
        """As for any rows, and what was gathered of those that are gone is forgotten, too."""
        kept = super().retained(oldest)
        return kept if kept is self else replace(kept, _gathered={})

    def _update(self, x: Tensor, version: int) -> Tensor:
        left, right = self._seen(min(version, self.version))
        tokens = x.float().reshape(-1, x.shape[-1])
        full = (F.pad(block, (0, 0, 0, BLOCK - len(block))) for block in tokens.split(BLOCK))
        update = torch.cat([self._low(block, right) @ left for block in full])[: len(tokens)]
        return update.view(*x.shape[:-1], -1)

    def _low(self, block: Tensor, right: Tensor) -> Tensor:
        low = block @ right.T
        return low if self.inputs is None else self.inputs.total(low)

    def _seen(self, version: int) -> tuple[Tensor, Tensor]:
        """The visible rows alone, in their `order`: a row that is multiplied by zero, or one that comes
        at another place, would change how the others are summed, and with it bits.
        """
        found = self._gathered.get(version)
        if found is None:
            rows = self.visible(version).nonzero()[:, 0]
            rows = rows[self.order.rows[rows].argsort(stable=True)]
            left, right = (part.rows[rows] for part in self.parts)
            found = self._gathered[version] = (left, right)
            for old in tuple(islice(self._gathered, max(len(self._gathered) - KEPT, 0))):
                self._gathered.pop(old, None)
        return found
