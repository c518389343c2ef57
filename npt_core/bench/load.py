"""A load of equal streams on an engine."""

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from npt_core.bench.figures import Figures, Rounds, Timeline
from npt_core.engine import (
    Engine,
    EngineConfig,
    Event,
    FinishEvent,
    GenerationRequest,
    SamplingParams,
    TokenEvent,
    alone,
    page_size_for,
    runner_for,
)

PROMPT_TOKENS, NEW_TOKENS = 64, 64
POSITIONS = PROMPT_TOKENS + NEW_TOKENS
_LEAST_TOKENS = 1024
_TOKENS_PER_STREAM = 2 * POSITIONS
"""Twice what a stream needs, so that no sequence is ever set back."""


def prompts(count: int, vocabulary: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Random prompts: nothing is shared, so no cache helps."""
    draw = random.Random(seed)
    return [tuple(draw.randrange(3, vocabulary) for _ in range(PROMPT_TOKENS)) for _ in range(count)]


@contextmanager
def running(model: Any, bank: Any, streams: int, drafts: bool = True) -> Iterator[Engine]:
    """An engine that no end token stops, with room for `streams`; closed afterwards.

    The weights are laid out on a thread that ends: see `alone`.
    """
    tokens = max(_LEAST_TOKENS, streams * _TOKENS_PER_STREAM)
    runner = alone(runner_for, model, -(-tokens // page_size_for(model)))
    most = max(EngineConfig().max_running, streams)
    engine = Engine(runner, bank, (), EngineConfig(max_running=most, drafts=drafts))
    try:
        yield engine
    finally:
        engine.close()


@dataclass
class _Listener(Timeline):
    """The timeline of one stream."""

    ended: threading.Event = field(default_factory=threading.Event)

    def hear(self, event: Event) -> None:
        if isinstance(event, TokenEvent):
            self.mark()
        elif isinstance(event, FinishEvent):
            self.ended.set()


def measure(engine: Engine, streams: int, vocabulary: int, seconds: float) -> Figures:
    """Rounds of `streams` requests at once, for at least `seconds`."""
    load = load_of(engine, streams, vocabulary)
    load.go_on(seconds)
    return load.figures


def load_of(engine: Engine, streams: int, vocabulary: int, seed: int = 0) -> Rounds:
    """Rounds of `streams` requests at once, warmed up. Two loads of one engine need seeds that are far apart:
    what one has asked is cached.
    """
    return Rounds(streams, lambda n: answered(engine, prompts(streams, vocabulary, seed + n)))


def answered(
    engine: Engine, asked: Sequence[tuple[int, ...]], new_tokens: int = NEW_TOKENS
) -> list[Timeline]:
    """All of `asked` at once, each to its last token."""
    listeners = []
    for prompt in asked:
        listener = _Listener()
        request = GenerationRequest(prompt, SamplingParams(max_new_tokens=new_tokens))
        engine.submit(request).subscribe(listener.hear)
        listeners.append(listener)
    for listener in listeners:
        listener.ended.wait()
    return list(listeners)
