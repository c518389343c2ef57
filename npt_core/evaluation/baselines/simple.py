"""Baselines that need no gradient: the original modulation rule, and ridge without the bank."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from npt_core.bank import FactWeights, Site
from npt_core.consolidation import WriteRequest
from npt_core.consolidation.modulation import modulation_weights
from npt_core.consolidation.request import PresetName
from npt_core.consolidation.ridge import ridge_weights
from npt_core.evaluation.baselines.editor import Subject, Taught
from npt_core.evaluation.speaker import Edits, combined


@dataclass(frozen=True)
class Modulation:
    """`strategy: modulation` with an original preset; every fact reads the untouched model."""

    preset: PresetName

    @property
    def name(self) -> str:
        """With the preset."""
        return f"modulation, {self.preset}"

    def edits(self, subject: Subject, facts: Sequence[Taught], counts: Sequence[int]) -> Iterator[Edits]:
        """Sums of rank-one updates of `gate_proj`. Raises InvalidRequest without adapters."""
        return _sums([self._written(subject, t) for t in facts[: counts[-1]]], counts)

    def _written(self, subject: Subject, taught: Taught) -> FactWeights:
        request = WriteRequest(taught.statement, strategy="modulation", preset=self.preset)
        return modulation_weights(subject.model, subject.template, request)


@dataclass(frozen=True)
class Ridge:
    """`strategy: ridge`: the columns of each fact solved into `down_proj` alone, and added up."""

    strength: float | None = None
    """None takes the checkpoint's own lambda."""
    name: str = "ridge, no bank"

    def edits(self, subject: Subject, facts: Sequence[Taught], counts: Sequence[int]) -> Iterator[Edits]:
        """Sums of updates of `down_proj`; a refused fact adds nothing."""
        calibration = subject.consolidator.calibration
        strength = calibration.config.ridge_lambda if self.strength is None else self.strength
        none = FactWeights()
        written = [
            none if t.weights is None else ridge_weights(t.weights, calibration, strength)
            for t in facts[: counts[-1]]
        ]
        return _sums(written, counts)


def _sums(written: Sequence[FactWeights], counts: Sequence[int]) -> Iterator[Edits]:
    total: dict[tuple[int, Site], Tensor] = {}
    done = 0
    for n in counts:
        for weights in written[done:n]:
            total = combined(total, _materialised(weights))
        done = n
        yield total


@torch.no_grad()
def _materialised(weights: FactWeights) -> dict[tuple[int, Site], Tensor]:
    """Factors as the matrices they stand for: `left^T right` `[out, in]`."""
    return {at: f.left.double().T @ f.right.double() for at, f in weights.factors.items()}
