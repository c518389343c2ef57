"""Which stored facts answer to a key, and how nearly: what makes recall explainable."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from npt_core.bank.matching import ColumnTable
from npt_core.bank.weights import FactWeights


class Match(NamedTuple):
    """The column of a fact that comes nearest to firing on one of several keys.

    `cosine` and `threshold` belong to the key space of `layer`; `rows` are the numbers of the keys on
    which some column of the fact passes its threshold.
    """

    fact: str
    layer: int
    cosine: float
    threshold: float
    rows: tuple[int, ...]

    @property
    def fires(self) -> bool:
        """Whether the column adds its value somewhere, unless a better one does."""
        return bool(self.rows)


class Nearest(NamedTuple):
    """As `Match`, with the number that a table knows its owner by."""

    owner: int
    cosine: float
    threshold: float
    rows: tuple[int, ...]


def nearest(table: ColumnTable, keys: Tensor, version: int) -> list[Nearest]:
    """For each owner of columns that `version` sees, the one with the least way to go (or most to spare)
    between the best of `keys` `[rows, p]` and its threshold.
    """
    stored, _, thresholds = table.tensors
    return _nearest(stored, thresholds, table.owner.rows, table.visible(version), keys)


def _nearest(
    stored: Tensor, thresholds: Tensor, owner: Tensor, visible: Tensor, keys: Tensor
) -> list[Nearest]:
    cosines = keys.to(stored) @ stored.T
    spare = (cosines - thresholds).masked_fill(~visible, -torch.inf)
    best, at = spare.max(0)
    owners, place = owner[visible].unique(return_inverse=True)
    most = best.new_full((len(owners),), -torch.inf).scatter_reduce(0, place, best[visible], "amax")
    columns = visible.nonzero()[:, 0]
    chosen = columns.new_zeros(len(owners))
    chosen[place[best[visible] == most[place]]] = columns[best[visible] == most[place]]
    fired: dict[int, set[int]] = {}
    for row, column in (spare > 0).nonzero().tolist():
        fired.setdefault(int(owner[column]), set()).add(row)
    return [
        Nearest(number, float(cosines[at[c], c]), float(thresholds[c]), tuple(sorted(fired.get(number, ()))))
        for number, c in zip(owners.tolist(), chosen.tolist(), strict=True)
    ]


def matched(facts: Mapping[str, FactWeights], keys: Mapping[int, Tensor]) -> list[Match]:
    """As `Bank.matches`, among facts that are not in a bank."""
    names = list(facts)
    found = []
    for index, rows in keys.items():
        parts = [
            (number, c)
            for number, name in enumerate(names)
            if (c := facts[name].columns.get(index)) is not None and len(c.keys)
        ]
        if not parts:
            continue
        owner = torch.cat([torch.full((len(c.keys),), number) for number, c in parts])
        stored, thresholds = (torch.cat([getattr(c, p) for _, c in parts]) for p in ("keys", "thresholds"))
        everyone = torch.ones(len(owner), dtype=torch.bool)
        found.append((index, _nearest(stored, thresholds, owner, everyone, rows)))
    return joined(names, found)


def joined(names: Sequence[str], found: Sequence[tuple[int, Sequence[Nearest]]]) -> list[Match]:
    """One match a fact from what the layers found; those that fire, and the nearest, first."""
    best: dict[str, Match] = {}
    for layer, matches in found:
        for each in matches:
            match = Match(names[each.owner], layer, each.cosine, each.threshold, each.rows)
            held = best.get(match.fact, match)
            nearer = max(match, held, key=lambda m: m.cosine - m.threshold)
            best[match.fact] = nearer._replace(rows=tuple(sorted({*match.rows, *held.rows})))
    return sorted(best.values(), key=lambda m: (not m.fires, -m.cosine, m.fact))
