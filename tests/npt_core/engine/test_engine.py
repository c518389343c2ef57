import threading
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor

from npt_core.engine import (
    EmptyPrompt,
    Engine,
    EngineClosed,
    EngineConfig,
    EngineFailed,
    FinishEvent,
    FinishReason,
    GenerationRequest,
    PromptTooLong,
    QueueFull,
    SamplingParams,
    Span,
    Stream,
    TokenEvent,
    UnknownToken,
    VersionGone,
    VersionNotFound,
)
from npt_core.engine.page_table import PAGE
from tests.npt_core.engine.fakes import VOCAB, BrokenRunner, CountingRunner


@contextmanager
def running(model: CountingRunner, **options: Any) -> Iterator[tuple[Engine, SimpleNamespace]]:
    bank = SimpleNamespace(version=options.pop("version", 0), oldest=options.pop("oldest", 0))
    eos = options.pop("eos", ())
    engine = Engine(model, bank, eos, EngineConfig(**{"max_running": 1, "queue_size": 64, **options}))
    try:
        yield engine, bank
    finally:
        if model.gate is not None:
            model.gate.release(1000)
        engine.close()


def ask(*prompt: int, **params: Any) -> GenerationRequest:
    return GenerationRequest(prompt or (3,), SamplingParams(**params))


def tokens(stream: Stream, index: int = 0) -> list[int]:
    return [e.token_id for e in stream if isinstance(e, TokenEvent) and e.index == index]


def test_answer_ends_with_one_finish_event() -> None:
    with running(CountingRunner()) as (engine, _):
        events = list(engine.submit(ask(max_new_tokens=3)))
    assert [e.token_id for e in events if isinstance(e, TokenEvent)] == [4, 5, 6]
    assert events[3:] == [FinishEvent(0, FinishReason.LENGTH)]


def test_end_of_text_stops_and_is_not_reported() -> None:
    with running(CountingRunner(), eos={6}) as (engine, _):
        events = list(engine.submit(ask()))
    assert events == [TokenEvent(0, 4), TokenEvent(0, 5), FinishEvent(0, FinishReason.STOP)]


def test_prompt_is_prefilled_once_and_then_single_tokens_are_fed() -> None:
    model = CountingRunner()
    with running(model) as (engine, _):
        list(engine.submit(ask(7, 8, 9, max_new_tokens=3)))
    assert [call["ids"] for call in model.calls] == [[7, 8, 9], [10], [11]]


def test_request_keeps_its_version_while_a_fact_lands() -> None:
    model = CountingRunner(gate=threading.Semaphore(0))
    with running(model, max_running=2) as (engine, bank):
        before = engine.submit(ask(0, max_new_tokens=4))
        model.entered.acquire()
        bank.version = 1
        after = engine.submit(ask(0, max_new_tokens=4))
        assert model.gate is not None
        model.gate.release(8)
        assert tokens(before) == [1, 2, 3, 4]
        assert tokens(after) == [2, 4, 6, 8]
    assert (before.weights_version, after.weights_version) == (0, 1)


def test_request_waiting_in_the_queue_keeps_the_version_of_its_admission() -> None:
    model = CountingRunner(gate=threading.Semaphore(0))
    with running(model) as (engine, bank):
        engine.submit(ask(max_new_tokens=1))
        waiting = engine.submit(ask(0, max_new_tokens=2))
        bank.version = 5
        assert model.gate is not None
        model.gate.release(3)
        assert tokens(waiting) == [1, 2]


def test_named_version_and_modulation_scale_reach_every_forward() -> None:
    model = CountingRunner()
    request = GenerationRequest((1,), SamplingParams(max_new_tokens=3), 2, 0.0)
    with running(model, version=4) as (engine, _):
        list(engine.submit(request))
    assert {(c["weights_version"], c["modulation_scale"]) for c in model.calls} == {(2, 0.0)}


@pytest.mark.parametrize("version", [-1, 3, 10**9])
def test_unknown_version_is_refused(version: int) -> None:
    with (
        running(CountingRunner(), version=2) as (engine, _),
        pytest.raises(VersionNotFound, match="the newest is 2"),
    ):
        engine.submit(GenerationRequest((1,), weights_version=version))


def test_version_that_is_no_longer_kept_is_refused() -> None:
    with running(CountingRunner(), version=7, oldest=3) as (engine, _):
        with pytest.raises(VersionGone, match="2 is no longer kept, the oldest is 3, the newest 7") as caught:
            engine.submit(GenerationRequest((1,), weights_version=2))
        assert (caught.value.version, caught.value.oldest, caught.value.newest) == (2, 3, 7)
        assert engine.submit(GenerationRequest((1,), weights_version=3)).weights_version == 3


def test_versions_of_running_and_waiting_requests_are_told_until_they_end() -> None:
    model = CountingRunner(gate=threading.Semaphore(0))
    with running(model, version=5) as (engine, _):
        assert engine.oldest_pinned() is None
        first = engine.submit(GenerationRequest((1,), SamplingParams(max_new_tokens=1), 4))
        model.entered.acquire()
        second = engine.submit(GenerationRequest((1,), SamplingParams(max_new_tokens=1), 2))
        third = engine.submit(ask(max_new_tokens=1))
        assert engine.oldest_pinned() == 2
        assert model.gate is not None
        for stream, left in ((first, 2), (second, 5), (third, None)):
            model.gate.release()
            tokens(stream)
            assert engine.oldest_pinned() == left


def test_prompt_that_leaves_no_room_is_refused() -> None:
    with running(CountingRunner(max_positions=8)) as (engine, _):
        with pytest.raises(PromptTooLong, match="8 tokens, at most 7"):
            engine.submit(ask(*range(8)))
        assert len(tokens(engine.submit(ask(*range(7), max_new_tokens=5)))) == 1


@pytest.mark.parametrize("stranger", [-1, VOCAB, 2**31])
def test_number_that_is_no_token_is_refused_and_fails_nobody(stranger: int) -> None:
    with running(CountingRunner()) as (engine, _):
        with pytest.raises(UnknownToken, match=f"from 0 to {VOCAB - 1}"):
            engine.submit(ask(1, stranger))
        assert len(tokens(engine.submit(ask(1, VOCAB - 1, max_new_tokens=5)))) == 5


def test_empty_prompt_is_refused() -> None:
    with running(CountingRunner()) as (engine, _), pytest.raises(EmptyPrompt):
        engine.submit(GenerationRequest(()))


def test_queue_is_bounded_and_admits_all_sequences_or_none() -> None:
    model = CountingRunner(gate=threading.Semaphore(0))
    with running(model, max_running=1, queue_size=2) as (engine, _):
        first = engine.submit(ask(max_new_tokens=1))
        model.entered.acquire()
        with pytest.raises(QueueFull):
            engine.submit(ask(n=3))
        assert (engine.running, engine.waiting) == (1, 0)
        second = engine.submit(ask(n=2, max_new_tokens=1))
        with pytest.raises(QueueFull):
            engine.submit(ask())
        assert (engine.running, engine.waiting) == (1, 2)
        assert model.gate is not None
        model.gate.release(3)
        assert tokens(first) == [4]
        assert len(list(second)) == 4


def test_place_is_free_once_the_end_was_told() -> None:
    with running(CountingRunner(), max_running=1, queue_size=0) as (engine, _):
        for _ in range(50):
            assert tokens(engine.submit(ask(max_new_tokens=1))) == [4]


def test_cancelled_request_ends_with_that_reason() -> None:
    model = CountingRunner(gate=threading.Semaphore(0))
    with running(model) as (engine, _):
        stream = engine.submit(ask())
        model.entered.acquire()
        stream.cancel()
        assert model.gate is not None
        model.gate.release()
        assert list(stream)[-1] == FinishEvent(0, FinishReason.CANCELLED)


def test_one_of_several_sequences_can_be_cancelled() -> None:
    model = CountingRunner(gate=threading.Semaphore(0))
    with running(model) as (engine, _):
        stream = engine.submit(ask(n=2, max_new_tokens=2))
        stream.cancel(1)
        assert model.gate is not None
        model.gate.release(10)
        ends = {e.index: e.reason for e in stream if isinstance(e, FinishEvent)}
    assert ends == {0: FinishReason.LENGTH, 1: FinishReason.CANCELLED}


def test_passed_deadline_ends_the_request_before_its_first_token() -> None:
    model = CountingRunner()
    with running(model) as (engine, _):
        request = GenerationRequest((1,), deadline=time.monotonic() - 1)
        assert list(engine.submit(request)) == [FinishEvent(0, FinishReason.DEADLINE)]
    assert model.calls == []


def test_failing_forward_ends_its_request_and_spares_the_engine() -> None:
    model = BrokenRunner()
    with running(model) as (engine, _):
        events = list(engine.submit(ask()))
        assert events == [TokenEvent(0, 4), FinishEvent(0, FinishReason.ERROR)]
        model.calls.clear()
        assert tokens(engine.submit(ask(max_new_tokens=1))) == [4]


class FailingOnce(CountingRunner):
    """Fails in its second step and in no other."""

    failed = False

    def run(self, spans: Seq[Span], between: Callable[[], None], /) -> Tensor:
        if self.calls and not self.failed:
            self.failed = True
            raise RuntimeError("out of memory")
        return super().run(spans, between)


def test_failing_step_ends_everybody_who_took_part_and_nobody_else() -> None:
    model = FailingOnce(gate=threading.Semaphore(0))
    with running(model, max_running=3) as (engine, _):
        streams = [engine.submit(ask(max_new_tokens=2))]
        model.entered.acquire()
        streams += [engine.submit(ask(max_new_tokens=2)) for _ in range(3)]
        assert model.gate is not None
        model.gate.release(1000)
        ends = [list(stream)[-1] for stream in streams]
    failed, fine = FinishEvent(0, FinishReason.ERROR), FinishEvent(0, FinishReason.LENGTH)
    assert ends == [failed, failed, failed, fine]


class Overflowing(CountingRunner):
    """Computes no numbers at version 1."""

    def run(self, spans: Seq[Span], between: Callable[[], None], /) -> Tensor:
        logits = super().run(spans, between)
        logits[[span.sequence.version == 1 for span in spans if span.samples]] = float("nan")
        return logits


@pytest.mark.parametrize("temperature", [0.0, 1e-3])
def test_version_without_finite_scores_fails_its_readers_alone_and_is_not_cached(temperature: float) -> None:
    prompt, sampling = tuple(range(2 * PAGE)), SamplingParams(2, temperature, seed=1)
    model = Overflowing(gate=threading.Semaphore(0))
    with running(model, max_running=2, version=1) as (engine, _):
        streams = [engine.submit(GenerationRequest(prompt, sampling, version)) for version in (0, 1)]
        assert model.gate is not None
        model.gate.release(1000)
        fine, failed = (list(stream) for stream in streams)
        engine.execute(lambda: None)  # the step is over
        assert failed == [FinishEvent(0, FinishReason.ERROR)]
        assert fine[1:] == [TokenEvent(0, 2 * PAGE + 1), FinishEvent(0, FinishReason.LENGTH)]
        assert len(engine.prefix_cache) == 2


@pytest.mark.parametrize("part", ["plan", "done", "add"])
def test_engine_whose_thread_fails_ends_and_refuses_everybody(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread died, and whoever asked it waited for ever."""
    model = CountingRunner(gate=threading.Semaphore(0))
    begun, let_go = threading.Event(), threading.Event()

    def half_done(engine: Engine) -> None:
        try:
            while True:
                begun.set()
                engine.pause()
        finally:
            let_go.set()

    with running(model, max_running=1) as (engine, _):
        jobs = [engine.post(partial(half_done, engine)), engine.post(let_go.wait)]
        assert begun.wait(10)
        streams = [engine.submit(ask())]
        model.entered.acquire()
        streams.append(engine.submit(ask(n=2)))

        def failing(*_: Any) -> None:
            raise IndexError("no such page")

        monkeypatch.setattr(engine._scheduler, part, failing)
        if part == "done":  # a step is caught; what it ends with is not
            monkeypatch.setattr(engine._scheduler, "remove", failing)
        assert model.gate is not None
        model.gate.release(1000)
        for stream in streams:
            assert {e.reason for e in stream if isinstance(e, FinishEvent)} == {FinishReason.ERROR}
        for job in jobs:
            assert isinstance(job.exception(10), EngineFailed)
        assert let_go.is_set()
        assert engine.failure == "IndexError: no such page"
        with pytest.raises(EngineFailed, match="no such page"):
            engine.submit(ask())
        with pytest.raises(EngineFailed) as caught:
            engine.execute(lambda: None)
        assert isinstance(caught.value.__cause__, IndexError)
        assert engine.oldest_pinned() is None


def submitted_until_closed(engine: Engine) -> list[Stream]:
    streams: list[Stream] = []
    while True:
        try:
            streams.append(engine.submit(ask()))
        except QueueFull:
            continue
        except EngineClosed:
            return streams


def test_close_ends_what_was_submitted_within_the_last_step() -> None:
    model = CountingRunner(gate=threading.Semaphore(0))
    with running(model) as (engine, _):
        streams = [engine.submit(ask())]
        model.entered.acquire()
        streams.append(engine.submit(ask()))
        closing = threading.Thread(target=engine.close)
        closing.start()
        streams += submitted_until_closed(engine)
        assert model.gate is not None
        model.gate.release(1000)
        closing.join()
        for stream in streams:
            assert [e for e in stream if isinstance(e, FinishEvent)] == [
                FinishEvent(0, FinishReason.CANCELLED)
            ]


def test_closed_engine_has_not_failed() -> None:
    with running(CountingRunner()) as (engine, _):
        pass
    assert engine.failure is None


def test_close_ends_running_and_waiting_requests() -> None:
    model = CountingRunner(gate=threading.Semaphore(0))
    with running(model) as (engine, _):
        streams = [engine.submit(ask()) for _ in range(3)]
        model.entered.acquire()
        assert model.gate is not None
        model.gate.release(2)
        engine.close()
        for stream in streams:
            ends = [e for e in stream if isinstance(e, FinishEvent)]
            assert ends == [FinishEvent(0, FinishReason.CANCELLED)]
        with pytest.raises(EngineClosed):
            engine.submit(ask())


def test_seed_gives_the_same_tokens_again_and_n_gives_different_ones() -> None:
    sampling = {"temperature": 5.0, "seed": 11, "max_new_tokens": 12}
    with running(CountingRunner()) as (engine, _):
        first = tokens(engine.submit(ask(**sampling)))
        again = tokens(engine.submit(ask(**sampling)))
        other = tokens(engine.submit(ask(**sampling | {"seed": 12})))
        pair = engine.submit(ask(**sampling, n=2))
        events = [e for e in pair if isinstance(e, TokenEvent)]
    assert first == again != other
    assert [e.token_id for e in events if e.index == 0] == first
    assert [e.token_id for e in events if e.index == 1] == other


def test_logprobs_are_those_of_the_model() -> None:
    with running(CountingRunner()) as (engine, _):
        event = next(iter(engine.submit(ask(logprobs=2, temperature=0.5, seed=1))))
    assert isinstance(event, TokenEvent)
    best = event.top_logprobs[0]
    assert best.token_id == 4
    assert best.logprob == pytest.approx(10 - _log_sum_exp(), abs=1e-5)
    assert len(event.top_logprobs) == 2


def _log_sum_exp() -> float:
    import math

    return math.log(math.exp(10) + VOCAB - 1)
