"""Which column fires: the best one that a version sees and whose score exceeds its own threshold.

Nearly always none does. So one product and its maximum over all columns ask whether any score exceeds
even the smallest threshold, and only what does is looked at again: its score, summed in one way whatever
else is in the batch or the bank, its own threshold, its lifetime.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from npt_core.bank.rows import Rows
from npt_core.native import Panels, compiled
from npt_core.sharding import Share

BLOCK = 16384
"""Columns of one product on a CPU: so many scores of a batch stay in its cache until they are read."""

MARGIN = 1e-5
"""How much the scores of a product may differ from those that decide: both round."""

LAST = torch.iinfo(torch.int64).max


@dataclass(frozen=True)
class Whitening:
    """Key space of one layer: `key(z) = normalise((z - mean) @ projection)`.

    `mean` `[d_ffn]`, `projection` `[d_ffn, p]`: the inverse square root of the covariance at
    surprising positions, times a seeded random projection. With a `share`, rows of its neurons alone.
    """

    mean: Tensor
    projection: Tensor
    share: Share | None = None

    def to(self, device: torch.device) -> "Whitening":
        """The same on `device`."""
        return replace(self, mean=self.mean.to(device), projection=self.projection.to(device))

    def shared(self, share: Share | None) -> "Whitening":
        """What a process needs that computes some of the neurons."""
        if share is None:
            return self
        return Whitening(share.of(self.mean), share.of(self.projection.T).T.contiguous(), share)

    def key(self, z: Tensor) -> Tensor:
        """Unit keys `[..., p]`, float32, of MLP activations `z` `[..., d_ffn]`."""
        return F.normalize(self._projected(z.float() - self.mean), dim=-1)

    def _projected(self, centred: Tensor) -> Tensor:
        if self.share is not None:
            return self.share.total(centred @ self.projection)
        if self._panels is None or centred.requires_grad:
            return centred @ self.projection
        rows = centred.reshape(-1, centred.shape[-1])
        return self._panels.times(rows).view(*centred.shape[:-1], self._panels.outputs)

    @cached_property
    def _panels(self) -> Panels | None:
        """The projection as the compiled product reads it, if there is one."""
        kernels = None if self.projection.is_cuda else compiled()
        return None if kernels is None else Panels.of(kernels, self.projection.float())


@dataclass(frozen=True, eq=False)
class ColumnTable(Rows):
    """The columns of one layer: keys `[n, p]`, values `[n, d]`, thresholds `[n]`.

    Of columns with equal scores the one of the smallest `order` wins: whatever was published first.
    """

    @cached_property
    def least(self) -> float:
        """The smallest threshold."""
        return float(self.parts[2].rows.detach().min()) if len(self) else float("inf")

    def added_to(self, y: Tensor, key: Tensor, version: int | Tensor) -> Tensor:
        """`y` `[rows, d]` with the value of the column that fires on each `key` `[rows, p]`, if any.

        `version` is one for all rows, or `[rows]`.
        """
        if key.is_cuda:
            hit, column = self.winners(key, version)
            return torch.where(hit[:, None], y + self.parts[1].rows[column].to(y.dtype), y)
        newest = int(version.max()) if isinstance(version, Tensor) else version
        found = self._candidates(key, self.born_by(newest))
        if not found:
            return y
        rows, columns = (torch.cat(parts) for parts in zip(*found, strict=True))
        scores = (key[rows] * self.parts[0].rows[columns]).sum(-1)
        at = version[rows] if isinstance(version, Tensor) else version
        fires = (self.born.rows[columns] <= at) & (at < self.died.rows[columns])
        fires &= scores > self.parts[2].rows[columns]
        rows, columns = _best(rows[fires], columns[fires], scores[fires], self.order.rows)
        return y.index_copy(0, rows, y[rows] + self.parts[1].rows[columns].to(y.dtype))

    def winners(self, key: Tensor, version: int | Tensor) -> tuple[Tensor, Tensor]:
        """Whether a column fires on each row of `key`, and which: the rule written out over all of
        `[rows, n]`, without a look at any number, for which a GPU would have to wait.
        """
        at = version[:, None] if isinstance(version, Tensor) else version
        keys, _, thresholds = self.tensors
        return best_columns(key, keys, thresholds, self.born.rows, self.died.rows, self.order.rows, at)

    def _candidates(self, key: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
        """Where the scores of the first `count` columns reach the smallest threshold: rows of `key` and
        numbers of columns, block by block; the columns of a row ascend.
        """
        keys, least = self.parts[0].rows[:count], self.least - MARGIN
        rows = (_largest(key, keys) > least).nonzero()[:, 0] if count else ()
        if not len(rows):
            return []
        promising, found = key[rows], []
        for first in range(0, count, BLOCK):
            scores = promising @ keys[first : first + BLOCK].T
            at, columns = (scores > least).nonzero(as_tuple=True)
            if len(at):
                found.append((rows[at], columns + first))
        return found


def _largest(key: Tensor, keys: Tensor) -> Tensor:
    """The best score of each row of `key` `[rows, p]` among all of `keys` `[n, p]`, `[rows]`."""
    kernels = compiled()
    if kernels is not None and keys.shape[1] <= kernels.widest:
        return kernels.largest(key.contiguous(), keys.contiguous())
    return torch.stack([(key @ block.T).amax(-1) for block in keys.split(BLOCK)]).amax(0)


def best_columns(
    key: Tensor,
    keys: Tensor,
    thresholds: Tensor,
    born: Tensor,
    died: Tensor,
    order: Tensor,
    at: int | Tensor,
) -> tuple[Tensor, Tensor]:
    """`ColumnTable.winners` over plain tensors; `at` is one version or `[rows, 1]`."""
    scores = key @ keys.T
    fires = (scores > thresholds) & (born <= at) & (at < died)
    scores = torch.where(fires, scores, -torch.inf)
    best = scores.amax(-1, keepdim=True)
    column = torch.where(scores == best, order, LAST).argmin(-1)
    return best[:, 0] > -torch.inf, column


def _best(rows: Tensor, columns: Tensor, scores: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that have candidates, each once, and the best candidate of each."""
    found, rows = rows.unique(return_inverse=True)
    top = scores.new_full((len(found),), -torch.inf).scatter_reduce(0, rows, scores, "amax")
    rows, columns = (part[scores == top[rows]] for part in (rows, columns))
    first = order.new_full((len(found),), LAST).scatter_reduce(0, rows, order[columns], "amin")
    rows, columns = (part[order[columns] == first[rows]] for part in (rows, columns))
    # Of one fact's own columns, the first.
    return found, columns.new_full((len(found),), LAST).scatter_reduce(0, rows, columns, "amin")
