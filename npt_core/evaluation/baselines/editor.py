"""What every baseline is: a way from facts to changed weights, with options of its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from npt_core.bank import FactWeights
from npt_core.consolidation import Consolidator
from npt_core.evaluation.speaker import Edits
from npt_core.model import NPTForCausalLM
from npt_core.prompts import PromptTemplate
from npt_core.training.facts import Fact


@dataclass(frozen=True)
class Taught:
    """A fact as a baseline gets it: subject and object known, which our own write is not told.

    `weights` are the columns of our write, None where it was refused.
    """

    number: int
    fact: Fact
    statement: str
    weights: FactWeights | None


@dataclass(frozen=True)
class Subject:
    """The model that is edited, and its checkpoint's consolidator."""

    model: NPTForCausalLM
    template: PromptTemplate
    consolidator: Consolidator
    moments: dict[int, Tensor] = field(default_factory=dict, repr=False)
    """By layer `E[k k^T]` of ordinary text, once it was asked for."""


class Editor(Protocol):
    """One baseline with its options fixed."""

    @property
    def name(self) -> str:
        """In the results."""

    def edits(self, subject: Subject, facts: Sequence[Taught], counts: Sequence[int]) -> Iterator[Edits]:
        """The edits to the untouched model after the first n facts, for each n of `counts`."""
