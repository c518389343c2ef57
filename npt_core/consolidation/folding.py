"""Facts folded into `down_proj` for good: what that does to them, and to everything else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from npt_core.bank import Bank, FactWeights
from npt_core.consolidation.calibration import Calibration
from npt_core.consolidation.consolidator import Consolidator, Stopwatch, Study
from npt_core.consolidation.errors import ConsolidationError
from npt_core.consolidation.request import WriteRequest
from npt_core.consolidation.ridge import fold, predicted_drift


@dataclass(frozen=True)
class FoldBars:
    """What a fold must keep. A drift of 0.03 is about +1% perplexity (docs/evaluation.md); locality is lower
    than a write's because every token passes through what is folded, and is measured on answers to the last
    token.
    """

    recall: float = 0.99
    locality: float = 0.95
    drift: float = 0.03


@dataclass(frozen=True)
class FoldReport:
    """What was measured; rates are in 0..1, and 0 where a fold was refused before they were measured.

    `drift` is predicted: by how much of its energy the output of ordinary text moves. `recall` is of what
    is folded, `others_recall` of facts beside it.
    """

    facts: int
    columns: int
    layers: tuple[int, ...]
    drift: float
    recall: float = 0.0
    others: int = 0
    others_recall: float = 0.0
    locality: float = 0.0
    timings: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; fractions and seconds to four places."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values |= {"layers": list(self.layers)}
        values["timings"] = {stage: round(seconds, 4) for stage, seconds in self.timings.items()}
        return {name: round(v, 4) if isinstance(v, float) else v for name, v in values.items()}


class FoldRefused(ConsolidationError):
    """The fold would break a bar; `report` says what was measured."""

    def __init__(self, reason: str, report: FoldReport) -> None:
        super().__init__(reason)
        self.reason = reason
        self.report = report


class FoldWriter:
    """Folds facts of one checkpoint; `consolidator` measures what that does."""

    def __init__(self, consolidator: Consolidator) -> None:
        self._consolidator = consolidator

    @property
    def _calibration(self) -> Calibration:
        return self._consolidator.calibration

    def deltas(self, facts: Mapping[str, FactWeights]) -> dict[int, Tensor]:
        """By layer, `Delta` `[d, d_ffn]` (float64) of `down_proj`: the same for the same facts."""
        return fold(facts, self._calibration)

    def examine(
        self,
        deltas: Mapping[int, Tensor],
        facts: Mapping[str, tuple[WriteRequest, FactWeights]],
        others: Sequence[tuple[WriteRequest, FactWeights]],
        bars: FoldBars,
    ) -> FoldReport:
        """What folding `facts` does to them, to `others`, whose columns stay, and to unrelated answers.

        Raises FoldRefused where a bar is missed.
        """
        watch = Stopwatch()
        columns = [c for _, weights in facts.values() for c in weights.columns.values()]
        report = FoldReport(
            len(facts),
            sum(len(c.keys) for c in columns),
            tuple(sorted(deltas)),
            predicted_drift(deltas, self._calibration),
            others=len(others),
        )
        if report.drift > bars.drift:
            raise FoldRefused(f"the predicted drift {report.drift:.3f} exceeds {bars.drift:g}", report)
        trial = Bank(self._consolidator.model, self._calibration.whitening)
        trial.publish(1, {f"other {i}": weights for i, (_, weights) in enumerate(others)}, (), deltas)
        with watch.stage("study"):
            requests = [request for request, _ in (*facts.values(), *others)]
            studies = self._consolidator.studies(requests)
        with watch.stage("verify"):
            recalls = [self._recall(study, trial) for study in studies]
            locality, _ = self._consolidator.changed_answers(trial)
        folded, beside = recalls[: len(facts)], recalls[len(facts) :]
        measured = replace(
            report,
            recall=sum(folded) / len(folded),
            others_recall=sum(beside) / len(beside) if beside else 1.0,
            locality=locality,
            timings=watch.seconds,
        )
        _check(measured, bars)
        return measured

    def _recall(self, study: Study, trial: Bank) -> float:
        """Over every wording: with its columns a fact loses what kept those of resembling facts away."""
        probes = (*study.training, *study.held_out)
        if not probes:
            return 0.0
        return self._consolidator.recall(probes, trial)


def _check(measured: FoldReport, bars: FoldBars) -> None:
    for name, found, bar in (
        ("the recall of what is folded", measured.recall, bars.recall),
        ("the recall of other facts", measured.others_recall, bars.recall),
        ("the share of other answers that stay", measured.locality, bars.locality),
    ):
        if found < bar:
            raise FoldRefused(f"{name}, {found:.3f}, is below {bar:g}", measured)
