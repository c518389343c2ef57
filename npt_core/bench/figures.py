"""What clients see of a load: throughput, time to the first token, time between two."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

from npt_core.evaluation.statistics import percentile


@dataclass
class Timeline:
    """When an answer was asked for and when each of its tokens came, in seconds of one clock."""

    begin: float = field(default_factory=time.perf_counter)
    tokens: list[float] = field(default_factory=list)

    def mark(self) -> None:
        """A token came just now."""
        self.tokens.append(time.perf_counter())


@dataclass(frozen=True)
class Figures:
    """Tokens a second over all streams; seconds to the first token and between two.

    Percentiles are over all answers and over all gaps of all streams; None where there were none.
    """

    streams: int
    tokens_per_s: float
    first_token_p50_s: float | None = None
    first_token_p95_s: float | None = None
    first_token_p99_s: float | None = None
    inter_token_p50_s: float | None = None
    inter_token_p95_s: float | None = None
    inter_token_p99_s: float | None = None

    @classmethod
    def of(cls, streams: int, answers: Sequence[Timeline], wall_s: float, tokens: int | None = None) -> Self:
        """Figures of `answers` given within `wall_s`; `tokens` where marks are not one a token."""
        firsts = [a.tokens[0] - a.begin for a in answers if a.tokens]
        gaps = [b - a for answer in answers for a, b in zip(answer.tokens, answer.tokens[1:], strict=False)]
        total = sum(len(answer.tokens) for answer in answers) if tokens is None else tokens
        return cls(streams, total / wall_s, *_percentiles(firsts), *_percentiles(gaps))


@dataclass
class Rounds:
    """Rounds `answered(seed)` of `streams` answers each, after one to warm up."""

    streams: int
    answered: Callable[[int], Sequence[Timeline]]
    answers: list[Timeline] = field(default_factory=list)
    wall_s: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        self.answered(self.seed)

    def go_on(self, seconds: float, more: Callable[[], bool] = lambda: False) -> Figures:
        """For at least so many seconds, and one round, and while `more` after that; the figures of these
        alone.
        """
        begin, took, before = time.perf_counter(), 0.0, len(self.answers)
        while not took or took < seconds or more():
            self.seed += 1
            self.answers += self.answered(self.seed)
            took = time.perf_counter() - begin
        self.wall_s += took
        return Figures.of(self.streams, self.answers[before:], took)

    @property
    def figures(self) -> Figures:
        """Of all rounds so far."""
        return Figures.of(self.streams, self.answers, self.wall_s)


def rounds(streams: int, seconds: float, answered: Callable[[int], Sequence[Timeline]]) -> Figures:
    """What rounds of at least `seconds` show."""
    made = Rounds(streams, answered)
    made.go_on(seconds)
    return made.figures


def _percentiles(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    if not values:
        return None, None, None
    return percentile(values, 0.5), percentile(values, 0.95), percentile(values, 0.99)
