"""What an evaluation measures, and at which sizes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

LARGE = 1000
"""Beyond this many facts, only the bank in sequence is measured, and only for the first seed."""

Rank = int | None
"""Columns kept per fact and layer when folding; None keeps all."""


@dataclass(frozen=True)
class CapacityConfig:
    """The grid on which the capacity of folding is looked for; one axis varies at a time."""

    counts: tuple[int, ...] = (1, 3, 10, 30, 100, 300, 1000)
    ranks: tuple[Rank, ...] = (None, 8, 4, 2, 1)
    strengths: tuple[float, ...] = (0.1, 10.0, 100.0)
    """Factors of the checkpoint's own lambda, beside 1."""
    widths: tuple[float, ...] = (0.5, 0.25)
    """Shares of the `d_ffn` hidden units that a fold may read, beside all."""
    layer_facts: int = 60
    """Facts written again for each other choice of layers."""
    sampled: int = 100
    """At most this many of the folded facts are asked at each point."""
    min_recall: float = 0.95
    max_perplexity: float = 0.01


@dataclass(frozen=True)
class BaselineConfig:
    """How much is asked of the baselines: most of them take a second a fact, one after another."""

    one_fact: int = 20
    counts: tuple[int, ...] = (10, 100)
    seeds: int = 1
    development: int = 5
    """Facts on which each baseline's own options are chosen; they are used for nothing else."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Sizes and seeds. Raises ValueError for empty or unordered `counts`, or no seed."""

    counts: tuple[int, ...] = (1, 10, 100, 1000)
    seeds: tuple[int, ...] = (0, 1, 2)
    one_fact: int = 300
    clustered: int = 100
    asked: int = 300
    """At most this many facts of each size are asked, evenly spread from the first to the last."""
    bystanders: int = 100
    """Facts of each size whose neighbourhood is asked."""
    retention: int = 10
    """How many of the first facts are followed to the end."""
    documents: int = 80
    fold_ranks: tuple[Rank, ...] = (None, 4)
    batch: int = 64
    max_new_tokens: int = 24
    capacity: CapacityConfig = field(default_factory=CapacityConfig)
    baselines: BaselineConfig | None = field(default_factory=BaselineConfig)
    data: Path | None = None
    """Folder with `wiki-leads.jsonl.xz`; adds perplexity and KL on natural text."""

    def __post_init__(self) -> None:
        if not self.counts or min(self.counts) < 1 or list(self.counts) != sorted(set(self.counts)):
            raise ValueError(f"counts must be ascending and positive, not {self.counts}")
        if self.counts[0] > LARGE:
            raise ValueError(f"the smallest of counts must be at most {LARGE}, not {self.counts[0]}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be given, each once, not {self.seeds}")
        if (
            min(self.one_fact, self.asked, self.documents, self.batch, self.max_new_tokens, self.retention)
            < 1
        ):
            raise ValueError("one_fact, asked, documents, batch, max_new_tokens and retention start at 1")

    @property
    def usual_counts(self) -> tuple[int, ...]:
        """The sizes measured for every seed, in both tiers."""
        return tuple(n for n in self.counts if n <= LARGE)

    @property
    def large_counts(self) -> tuple[int, ...]:
        """The other sizes."""
        return tuple(n for n in self.counts if n > LARGE)

    @property
    def facts(self) -> int:
        """Facts written in random order for every seed."""
        return max((*self.usual_counts, self.one_fact))

    @property
    def clustered_counts(self) -> tuple[int, ...]:
        """The sizes measured in clustered order."""
        return tuple(n for n in self.counts if n <= self.clustered)

    @classmethod
    def quick(cls, data: Path | None = None) -> Self:
        """A look at everything with 20 facts: about a minute."""
        return cls(
            counts=(1, 5, 20),
            seeds=(0,),
            one_fact=20,
            clustered=5,
            bystanders=20,
            documents=20,
            capacity=CapacityConfig((1, 5, 20), (None, 4, 1), (), (), layer_facts=5, sampled=20),
            baselines=BaselineConfig(one_fact=2, counts=(3,), development=1),
            data=data,
        )
