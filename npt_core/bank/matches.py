"""Which stored facts answer to a key, and how nearly: what makes recall explainable."""

from collections.abc import Iterable, Mapping, Sequence
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


def nearest(
    table: ColumnTable, keys: Tensor, version: int, limit: int | None = None, firing: bool = False
) -> list[Nearest]:
    """For each owner of columns that `version` sees, the one with the least way to go (or most to spare)
    between the best of `keys` `[rows, p]` and its threshold; the `limit` nearest, or only those that fire.
    """
    stored, _, thresholds = table.tensors
    return _nearest(stored, thresholds, table.owner.rows, table.visible(version), keys, limit, firing)


def _nearest(
    stored: Tensor,
    thresholds: Tensor,
    owner: Tensor,
    visible: Tensor,
    keys: Tensor,
    limit: int | None = None,
    firing: bool = False,
) -> list[Nearest]:
    cosines = keys.to(stored) @ stored.T
    spare = (cosines - thresholds).masked_fill(~visible, -torch.inf)
    best, at = spare.max(0)
    columns = (best > 0 if firing else visible).nonzero()[:, 0]
    owners, place = owner[columns].unique(return_inverse=True)
    most = best.new_full((len(owners),), -torch.inf).scatter_reduce(0, place, best[columns], "amax")
    chosen = columns.new_zeros(len(owners))
    winning = best[columns] == most[place]
    chosen[place[winning]] = columns[winning]
    if limit is not None and limit < len(chosen):
        chosen = chosen[most.topk(limit).indices]
    fired: dict[int, set[int]] = {}
    for row, column in (spare > 0).nonzero().tolist():
        fired.setdefault(int(owner[column]), set()).add(row)
    return [
        Nearest(number, float(cosines[at[c], c]), float(thresholds[c]), tuple(sorted(fired.get(number, ()))))
        for number, c in zip(owner[chosen].tolist(), chosen.tolist(), strict=True)
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
    """One match a fact from what the layers found, the one that is nearest to firing first."""
    best: dict[str, Match] = {}
    for layer, matches in found:
        for each in matches:
            match = Match(names[each.owner], layer, each.cosine, each.threshold, each.rows)
            held = best.get(match.fact, match)
            nearer = max(match, held, key=lambda m: m.cosine - m.threshold)
            best[match.fact] = nearer._replace(rows=tuple(sorted({*match.rows, *held.rows})))
    return in_order(best.values())


def in_order(matches: Iterable[Match]) -> list[Match]:
    """Those that fire with most to spare first, those with most to go last."""
    return sorted(matches, key=lambda m: (m.threshold - m.cosine, m.fact))
