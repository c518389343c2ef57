"""More requests than fit, and clients that leave: all are told, and nothing stays behind."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor

from npt_core.engine import (
    Engine,
    EngineConfig,
    FinishEvent,
    FinishReason,
    GenerationRequest,
    QueueFull,
    Runner,
    SamplingParams,
    Span,
    Stream,
    TokenEvent,
)
from tests.npt_core.engine.census import alive, is_idle, resident_bytes
from tests.npt_core.engine.fakes import CountingRunner
from tests.npt_core.tiny import shared_npt

RUNNING, QUEUE, REQUESTS, THREADS = 64, 256, 1000, 20
MAY_GROW = 8 * 2**20
"""What the allocators may keep. A page of keys and values that is lost 1,000 times is 8 MiB; the
smallest sequence with its stream, lost 10,000 times, 20 MiB.
"""


class Base:
    version = 0


@contextmanager
def running(runner: Any, **options: Any) -> Iterator[Engine]:
    engine = Engine(runner, Base(), (), EngineConfig(RUNNING, QUEUE, **options))
    try:
        yield engine
    finally:
        if getattr(runner, "gate", None) is not None:
            runner.gate.release(10_000)
        engine.close()


def requests(seed: int) -> list[GenerationRequest]:
    draw = random.Random(seed)
    return [
        GenerationRequest(
            tuple(draw.randrange(3, 60) for _ in range(draw.randint(1, 40))),
            SamplingParams(max_new_tokens=draw.randint(1, 8), temperature=draw.choice([0.0, 1.0]), seed=1),
            deadline=time.monotonic() + 600,
        )
        for _ in range(REQUESTS)
    ]


def submit_all(engine: Engine, asked: list[GenerationRequest]) -> list[Stream | None]:
    """From many threads at once; None for those that were refused."""
    start = threading.Barrier(THREADS)

    def client(own: list[GenerationRequest]) -> list[Stream | None]:
        start.wait()
        return [attempt(engine, request) for request in own]

    share = len(asked) // THREADS
    with ThreadPoolExecutor(THREADS) as pool:
        parts = pool.map(client, (asked[i : i + share] for i in range(0, len(asked), share)))
        return [stream for part in parts for stream in part]


def attempt(engine: Engine, request: GenerationRequest) -> Stream | None:
    try:
        return engine.submit(request)
    except QueueFull:
        return None


def check_complete(request: GenerationRequest, stream: Stream) -> None:
    *events, end = stream
    assert end == FinishEvent(0, FinishReason.LENGTH)
    assert len(events) == request.params.max_new_tokens
    assert all(isinstance(event, TokenEvent) for event in events)


@pytest.mark.parametrize("attempt_number", range(5))
def test_exactly_as_many_as_fit_are_admitted_however_many_come_at_once(attempt_number: int) -> None:
    runner = CountingRunner(gate=threading.Semaphore(0), num_pages=4096)
    with running(runner) as engine:
        asked = requests(attempt_number)
        streams = submit_all(engine, asked)  # no step is done meanwhile
        assert sum(stream is not None for stream in streams) == RUNNING + QUEUE
        assert runner.gate is not None
        runner.gate.release(10_000)
        for request, stream in zip(asked, streams, strict=True):
            if stream is not None:
                check_complete(request, stream)
        assert is_idle(engine)


def test_a_thousand_requests_at_once_are_answered_or_refused_in_flat_memory(stress: bool) -> None:
    with running(Runner(shared_npt(), 200)) as engine:
        before, memory = alive(), []
        for seed in range(12 if stress else 4):
            asked = requests(seed)
            streams = submit_all(engine, asked)
            for request, stream in zip(asked, streams, strict=True):
                if stream is not None:
                    check_complete(request, stream)
            assert len(streams) - streams.count(None) >= RUNNING + QUEUE
            assert is_idle(engine)
            del asked, streams, request, stream
            assert alive() == before
            memory.append(resident_bytes())
        assert memory[-1] - memory[1] < MAY_GROW, memory


class Impatient:
    """A runner whose clients leave: within their prompt, or after up to five tokens."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.num_pages, self.page_size = runner.num_pages, runner.page_size
        self.max_positions, self.draft_tokens = runner.max_positions, runner.draft_tokens
        self.batch_tokens, self.num_tokens = runner.batch_tokens, runner.num_tokens

    def run(self, spans: list[Span], between: Callable[[], None]) -> Tensor:
        logits: Tensor = self.runner.run(spans, between)
        for sequence, end in ((span.sequence, span.end) for span in spans):
            if end - sequence.prompt_length >= sequence.arrival % 5 or sequence.arrival % 5 == 0:
                sequence.stream.cancel()
        return logits


@pytest.mark.parametrize("kind", ["tiny", "counting"])
def test_thousands_of_cancelled_streams_leave_nothing(stress: bool, kind: str) -> None:
    """Some before their first step, all before their end; 10,000 in the long form."""
    runner = Runner(shared_npt(), 200) if kind == "tiny" else CountingRunner(num_pages=200, max_positions=200)
    draw, memory = random.Random(0), []
    with running(Impatient(runner), batch_tokens=64) as engine:
        before = alive()
        for _ in range(40 if stress else 8):
            streams = []
            for number in range(250):
                prompt = tuple(draw.randrange(3, 60) for _ in range(draw.randint(1, 90)))
                params = SamplingParams(max_new_tokens=90, temperature=draw.choice([0.0, 1.0]))
                streams.append(engine.submit(GenerationRequest(prompt, params)))
                if number % 4 == 0:
                    streams[-1].cancel()
            answers = [list(stream) for stream in streams]
            ends = [answer.pop() for answer in answers]
            assert ends == [FinishEvent(0, FinishReason.CANCELLED)] * len(streams)
            assert {len(answer) for answer in answers} == {0, 1, 2, 3, 4, 5}
            assert is_idle(engine)
            del streams
            getattr(runner, "calls", []).clear()
            assert alive() == before
            memory.append(resident_bytes())
    assert memory[-1] - memory[1] < MAY_GROW, memory
