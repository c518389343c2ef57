"""What is asked of a consolidation, and what it reports."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor

from npt_core.bank import FactWeights
from npt_core.config import ModulationType
from npt_core.consolidation.columns import AlignedProbe

Strategy = Literal["bank", "ridge", "modulation"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)
PresetName = Literal["factual_recall", "reasoning", "creative"]


@dataclass(frozen=True)
class Preset:
    """Settings of the original rules for one use."""

    modulation_type: ModulationType
    alpha: float


PRESETS: Mapping[str, Preset] = {
    "factual_recall": Preset("additive", 0.2),
    "reasoning": Preset("both", 0.05),
    "creative": Preset("multiplicative", 0.01),
}


@dataclass(frozen=True)
class Question:
    """A question about the fact, with its answer, given by the caller."""

    question: str
    answer: str


@dataclass(frozen=True)
class WriteRequest:
    """A fact to write. `alpha` scales the update; `token_idx` and `preset` are for `modulation` alone."""

    fact: str
    questions: tuple[Question, ...] = ()
    strategy: Strategy = "bank"
    alpha: float | None = None
    layers: tuple[int, ...] | None = None
    token_idx: int = -1
    preset: PresetName | None = None
    seed: int = 0

    @property
    def strength(self) -> float:
        """`alpha`; where it is not given the preset's, or 1."""
        if self.alpha is not None:
            return self.alpha
        return 1.0 if self.preset is None else PRESETS[self.preset].alpha


@dataclass(frozen=True)
class WriteReport:
    """What was measured on held-out probes and on the locality set; rates are in 0..1."""

    strategy: str
    recall_before: float = 0.0
    recall_after: float = 0.0
    teacher_recall: float = 0.0
    locality: float = 1.0
    drift: float = 0.0
    layers: tuple[int, ...] = ()
    columns: int = 0
    bytes: int = 0
    probes: Mapping[str, int] = field(default_factory=dict)
    answer: str | None = None
    attempts: int = 1
    timings: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; fractions and seconds to four places."""
        values = asdict(self) | {"layers": list(self.layers)}
        values["timings"] = {stage: round(seconds, 4) for stage, seconds in self.timings.items()}
        return {name: round(v, 4) if isinstance(v, float) else v for name, v in values.items()}


@dataclass(frozen=True)
class Consolidated:
    """A fact's weights, not yet published, and how they were measured.

    `asked`: by layer, keys `[n, p]` of the held-out questions, where their answers begin: a stored column
    that fires there answers what this fact answers. `held_out` are these questions, `subject` the words
    that name what they ask about.
    """

    weights: FactWeights
    report: WriteReport
    asked: Mapping[int, Tensor] = field(default_factory=dict)
    held_out: tuple[AlignedProbe, ...] = ()
    subject: frozenset[str] = frozenset()
