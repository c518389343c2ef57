"""Which stored facts answer to a key, and how nearly: what makes recall explainable."""

from typing import NamedTuple

import torch
from torch import Tensor

from npt_core.bank.matching import ColumnTable


class Match(NamedTuple):
    """The column of a fact that comes nearest to firing; cosines of its layer's key space."""

    fact: str
    layer: int
    cosine: float
    threshold: float

    @property
    def fires(self) -> bool:
        """Whether the column adds its value there, unless a better one does."""
        return self.cosine > self.threshold


class Nearest(NamedTuple):
    """As `Match`, with the number that a table knows its owner by."""

    owner: int
    cosine: float
    threshold: float


def nearest(table: ColumnTable, keys: Tensor, version: int) -> list[Nearest]:
    """For each owner that `version` sees, the column with the least way to go (or most to spare)
    between its threshold and the best of `keys` `[rows, p]`.
    """
    visible = table.visible(version).nonzero()[:, 0]
    if not len(visible) or not len(keys):
        return []
    stored, _, thresholds = (part.rows[visible] for part in table.parts)
    cosines = (keys.float() @ stored.T).amax(0)
    owners = table.owner.rows[visible]
    order = (cosines - thresholds).argsort(stable=True)
    order = order[owners[order].argsort(stable=True)]
    grouped = owners[order]
    rows = order[torch.cat([grouped[1:] != grouped[:-1], grouped.new_ones(1, dtype=torch.bool)])]
    return [
        Nearest(owner, cosine, threshold)
        for owner, cosine, threshold in zip(
            owners[rows].tolist(), cosines[rows].tolist(), thresholds[rows].tolist(), strict=True
        )
    ]
