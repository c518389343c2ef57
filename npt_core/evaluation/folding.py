"""The second tier: facts folded into `down_proj`, and how many of them fit.

The capacity is looked for along four axes: columns kept per fact, layers, the strength of the
regulariser, and `d_ffn`, the number of hidden units that a fold reads. The checkpoint fixes `d_ffn`;
smaller ones are tried by letting the fold read a part of the units alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from npt_core.bank import Columns, FactWeights
from npt_core.consolidation import FactError, WriteRequest
from npt_core.consolidation.calibration import Calibration
from npt_core.consolidation.ridge import fold, predicted_drift, regulariser
from npt_core.evaluation.config import Rank
from npt_core.evaluation.exam import RECALL, questions, spread
from npt_core.evaluation.journal import Journal, Key, Metrics
from npt_core.evaluation.speaker import Edits, edited
from npt_core.evaluation.workbench import Workbench
from npt_core.evaluation.writing import FactSet, fact_id

Deltas = Mapping[int, Tensor]


def compressed(columns: Columns, rank: int, factor: Tensor) -> Columns:
    """The `rank` leading rows of the fact's columns, for folding alone.

    A fold depends on keys `K [n, d_ffn]` and values `T [n, d]` only through `K^T K` and `K^T T`,
    which no rotation of the rows changes. The rows are rotated to the principal axes of
    `[K L^-T / |K L^-T|, T / |T|]`, with `factor` `L [d_ffn, d_ffn]` the Cholesky factor of the
    regulariser, and the axes of most energy are kept.
    """
    if len(columns.inputs) <= rank:
        return columns
    keys, values = columns.inputs.double(), columns.values.double()
    scaled = torch.linalg.solve_triangular(factor, keys.T, upper=False).T
    joint = torch.cat([scaled / scaled.norm(), values / values.norm().clamp(min=1e-12)], dim=1)
    rotation = torch.linalg.svd(joint, full_matrices=False)[0].T[:rank]
    return Columns(
        columns.keys[:rank],
        (rotation @ values).float(),
        columns.thresholds[:rank],
        (rotation @ keys).float(),
    )


@dataclass
class Folder:
    """Folds facts of one checkpoint, keeping at most `rank` columns of each in each layer."""

    calibration: Calibration
    rank: Rank = None
    strength: float | None = None
    units: int | None = None

    def deltas(self, facts: Mapping[str, FactWeights]) -> dict[int, Tensor]:
        """By layer, `Delta` `[d, d_ffn]` in float64."""
        rank = self.rank
        if rank is None:
            return fold(facts, self.calibration, self.strength, self.units)
        chosen = self.calibration.config.fold_lambda if self.strength is None else self.strength
        factors = {
            i: torch.linalg.cholesky(regulariser(layer.second_moment, chosen))
            for i, layer in self.calibration.layers.items()
        }
        small = {
            name: FactWeights({i: compressed(c, rank, factors[i]) for i, c in weights.columns.items()})
            for name, weights in facts.items()
        }
        return fold(small, self.calibration, self.strength, self.units)


def edits_of(deltas: Deltas) -> Edits:
    """Deltas of `down_proj`, as edits."""
    return {(layer, "down_proj"): delta for layer, delta in deltas.items()}


def method_name(rank: Rank) -> str:
    """The name of the tier in the results."""
    return "fold" if rank is None else f"fold, rank {rank}"


def folded(bench: Workbench, journal: Journal, learned: FactSet, counts: Sequence[int]) -> None:
    """The first n facts folded at once, with nothing in the bank."""
    for rank in bench.config.fold_ranks:
        for n in counts:
            key = Key(method_name(rank), "at once", learned.order, n, learned.seed)
            journal.once(key, partial(_folded, bench, learned, n, rank))


def _folded(bench: Workbench, learned: FactSet, n: int, rank: Rank) -> Metrics:
    deltas = Folder(bench.calibration, rank).deltas(learned.births(0, n))
    paper = bench.paper(learned, n)
    with edited(bench.model, edits_of(deltas)):
        found = bench.examined(paper, learned.refused)
    return found | {"predicted_drift": predicted_drift(deltas, bench.calibration)}


def fold_exactness(bench: Workbench, journal: Journal, learned: FactSet, count: int) -> None:
    """Whether a fold has the same bytes in any order, and without a fact as if never given."""
    key = Key("fold", "rollback", learned.order, count, learned.seed)
    journal.once(key, lambda: _refolded(bench, learned.births(0, count)))


def _refolded(bench: Workbench, facts: Mapping[str, FactWeights]) -> Metrics:
    folder = Folder(bench.calibration)
    fewer = dict(list(facts.items())[:-1])
    shuffled = dict(reversed(list(facts.items())))
    again = {name: w for name, w in shuffled.items() if name in fewer}
    return {
        "order_exact": float(_equal(folder.deltas(facts), folder.deltas(shuffled))),
        "retract_exact": float(_equal(folder.deltas(fewer), folder.deltas(again))),
    }


def _equal(a: Deltas, b: Deltas) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[i], b[i]) for i in a)


@dataclass(frozen=True)
class Trial:
    """One way of folding; `detail` names it in the results."""

    rank: Rank
    layers: tuple[int, ...]
    strength: float
    units: int

    @property
    def detail(self) -> str:
        """Readable, and unique."""
        rank = "all" if self.rank is None else self.rank
        layers = ",".join(map(str, self.layers))
        return f"rank {rank}; layers {layers}; d_ffn {self.units}; lambda {self.strength:g}"


def capacity(bench: Workbench, journal: Journal, learned: FactSet) -> None:
    """Folds more and more facts in each way, until recall or perplexity leaves its limit."""
    settings, whole = bench.config.capacity, bench.calibration.config
    ladder = [n for n in settings.counts if n <= len(learned.weights)]
    d_ffn = int(bench.model.config.intermediate_size)
    plain = Trial(None, whole.layers, whole.fold_lambda, d_ffn)
    trials = [replace(plain, rank=rank) for rank in settings.ranks]
    trials += [replace(plain, strength=f * plain.strength) for f in settings.strengths]
    trials += [replace(plain, units=round(share * d_ffn)) for share in settings.widths]
    for trial in trials:
        _climb(bench, journal, learned, trial, ladder)
    for layers in other_layers(whole.layers, bench.calibration.layers):
        if settings.layer_facts:
            smaller = _written_in(bench, learned, layers, settings.layer_facts)
            few = [n for n in ladder if n <= len(smaller.weights)]
            _climb(bench, journal, smaller, replace(plain, layers=layers), few)


def other_layers(layers: tuple[int, ...], measured: Iterable[int]) -> list[tuple[int, ...]]:
    """The last one, two, ... of the `measured` layers, without the choice that is `layers`."""
    known = tuple(sorted(measured))
    return [part for k in range(1, len(known) + 1) if (part := known[-k:]) != layers]


def _written_in(bench: Workbench, learned: FactSet, layers: tuple[int, ...], count: int) -> FactSet:
    """The facts written again: with other layers, each layer has something else to add."""
    weights: dict[int, FactWeights] = {}
    for number in range(min(count, len(learned.facts))):
        request = WriteRequest(learned.statements[number], layers=layers, seed=number)
        try:
            weights[number] = bench.consolidator.consolidate(request).weights
        except FactError:
            continue
    return replace(learned, weights=weights)


def _climb(bench: Workbench, journal: Journal, learned: FactSet, trial: Trial, ladder: Sequence[int]) -> None:
    limits = bench.config.capacity
    for n in ladder:
        key = Key("fold", "capacity", learned.order, n, learned.seed, trial.detail)
        found = journal.once(key, partial(_tried, bench, learned, trial, n))
        if not within(found, limits.min_recall, limits.max_perplexity):
            break


def within(found: Metrics, min_recall: float, max_perplexity: float) -> bool:
    """Whether a fold is still good enough."""
    return found[RECALL] >= min_recall and found["perplexity"] <= max_perplexity


def _tried(bench: Workbench, learned: FactSet, trial: Trial, n: int) -> Metrics:
    facts = sorted(learned.weights)[:n]
    items = [
        item
        for i in (facts[k] for k in spread(n, bench.config.capacity.sampled))
        for item in questions(i, learned.facts[i], bench.template)
        if item.group == RECALL
    ]
    folder = Folder(bench.calibration, trial.rank, trial.strength, trial.units)
    deltas = folder.deltas({fact_id(i): learned.weights[i] for i in facts})
    with edited(bench.model, edits_of(deltas)):
        found = bench.examiner.recall(bench.speaker, items) | bench.drift()
    return found | {"predicted_drift": predicted_drift(deltas, bench.calibration)}
