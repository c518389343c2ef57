"""A load of equal streams on an engine, and what its clients would see."""

import random
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from npt_core.engine import Engine, Event, FinishEvent, GenerationRequest, SamplingParams, TokenEvent
from npt_core.evaluation.statistics import percentile

PROMPT_TOKENS, NEW_TOKENS = 64, 64


@dataclass(frozen=True)
class Figures:
    """Tokens a second over all streams; seconds to the first token and between two, by stream."""

    streams: int
    tokens_per_s: float
    first_token_p50_s: float | None = None
    inter_token_p50_s: float | None = None
    inter_token_p95_s: float | None = None
    inter_token_p99_s: float | None = None


def prompts(count: int, vocabulary: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Random prompts: nothing is shared, so no cache helps."""
    draw = random.Random(seed)
    return [tuple(draw.randrange(3, vocabulary) for _ in range(PROMPT_TOKENS)) for _ in range(count)]


@dataclass
class _Clock:
    """Readings at every token of one stream."""

    begin: float = field(default_factory=time.perf_counter)
    tokens: list[float] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def hear(self, event: Event) -> None:
        if isinstance(event, TokenEvent):
            self.tokens.append(time.perf_counter())
        elif isinstance(event, FinishEvent):
            self.ended.set()


def measure(engine: Engine, streams: int, vocabulary: int, seconds: float, seed: int = 0) -> Figures:
    """Rounds of `streams` requests at once, for at least `seconds`."""
    clocks: list[_Clock] = []
    begin = time.perf_counter()
    while not clocks or time.perf_counter() - begin < seconds:
        seed += 1
        clocks += _round(engine, prompts(streams, vocabulary, seed))
    wall = time.perf_counter() - begin
    gaps = [b - a for c in clocks for a, b in zip(c.tokens, c.tokens[1:], strict=False)]
    return Figures(
        streams,
        sum(len(c.tokens) for c in clocks) / wall,
        statistics.median(c.tokens[0] - c.begin for c in clocks),
        *(percentile(gaps, share) for share in (0.5, 0.95, 0.99)),
    )


def _round(engine: Engine, asked: Sequence[tuple[int, ...]]) -> list[_Clock]:
    clocks = []
    for prompt in asked:
        clock = _Clock()
        request = GenerationRequest(prompt, SamplingParams(max_new_tokens=NEW_TOKENS))
        engine.submit(request).subscribe(clock.hear)
        clocks.append(clock)
    for clock in clocks:
        clock.ended.wait()
    return clocks
