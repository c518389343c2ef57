import random
import threading
from collections.abc import Iterator

import pytest
import torch

from npt_core.engine import Engine, EngineClosed, EngineConfig, GenerationRequest, SamplingParams
from npt_core.engine.background import SAVINGS, Background, _Slow
from tests.npt_core.engine.fakes import CountingRunner


class Bank:
    version = 0


@pytest.fixture
def runner() -> CountingRunner:
    return CountingRunner(threading.Semaphore(0))


@pytest.fixture
def engine(runner: CountingRunner) -> Iterator[Engine]:
    engine = Engine(runner, Bank(), (), EngineConfig(writers_share=0.5))
    yield engine
    assert runner.gate is not None
    runner.gate.release(1000)
    engine.close()


def test_a_job_pauses_only_where_a_step_is_due() -> None:
    due, trace = [False], list[str]()
    background = Background(0.5, lambda: due[0])

    def job() -> str:
        for piece in "abc":
            trace.append(piece)
            background.pause()
        return "done"

    outcome = background.add(job)
    due[0] = True
    background.advance(rows=0)
    trace.append("|")
    assert background.pending
    due[0] = False
    background.advance(rows=0)
    assert trace == ["a", "|", "b", "c"]
    assert outcome.result(0) == "done"
    assert not background.pending


def counting(background: Background) -> list[int]:
    """Queues a job without an end; how many of its pieces were computed."""
    pieces = [0]

    def job() -> None:
        while True:
            pieces[0] += 1
            background.pause()

    background.add(job)
    return pieces


def test_beside_steps_pieces_cost_what_steps_earned() -> None:
    background = Background(0.5, lambda: True)
    pieces = counting(background)
    background.advance(rows=1)
    assert pieces == [0]
    background.earn(1, 0.1)
    background.earn(1, 1e-9)
    background.advance(rows=1)
    assert pieces[0] > 2
    before = pieces[0]
    background._credit = -1.0  # a piece took longer than was earned
    background.earn(1, 0.1)
    background.advance(rows=1)
    assert pieces == [before]


def test_pieces_wait_for_a_short_step() -> None:
    """How long a step takes is known by its rows; of a number that is new, by the step before."""
    background = Background(0.5, lambda: True)
    pieces = counting(background)
    background.earn(1, 0.01)
    background.earn(5, 0.05)
    for rows in (5, 7):
        background.advance(rows)
        assert pieces == [0]
    background.advance(rows=1)
    assert pieces[0] > 0


def test_a_step_that_nobody_notices_is_no_measure_for_others() -> None:
    """A prompt alone may take long: pieces beside tokens have no more room for that."""
    background = Background(0.5, lambda: True)
    pieces = counting(background)
    background.earn(1, 0.01)
    background.earn(64, 0.1, noticed=False)
    background.advance(rows=1)
    assert pieces == [0]
    background.earn(64, 0.1, noticed=True)
    background.advance(rows=1)
    assert pieces[0] > 0


def test_where_all_steps_are_alike_a_piece_waits_no_longer_than_savings_last() -> None:
    background = Background(0.5, lambda: True)
    pieces = counting(background)
    for _ in range(SAVINGS + 2):
        background.earn(1, 0.01)
        background._step.seconds = 0.01
        background.advance(rows=1)
    assert pieces[0] > 0


def test_a_slow_step_is_one_that_few_exceed() -> None:
    slow, draw = _Slow(), random.Random(0)
    for _ in range(5000):
        slow.tell(draw.uniform(1.0, 2.0))
    assert slow.seconds == pytest.approx(1.95, rel=0.05)
    for _ in range(5000):
        slow.tell(draw.uniform(0.1, 0.2))
    assert slow.seconds == pytest.approx(0.195, rel=0.05)


def test_jobs_follow_one_another_and_a_failure_ends_one_alone() -> None:
    background, trace = Background(0.5, lambda: True), list[str]()

    def first() -> None:
        background.pause()
        raise ValueError("first")

    failed = background.add(first)
    worked = background.add(lambda: trace.append("second"))
    background.advance(rows=0)
    assert (trace, failed.done()) == ([], False)
    background.finish()
    with pytest.raises(ValueError, match="first"):
        failed.result(0)
    worked.result(0)
    assert (trace, background.pending) == (["second"], False)


def test_pause_outside_a_job_does_nothing() -> None:
    Background(0.5, lambda: True).pause()


def test_a_job_keeps_its_own_gradient_mode_and_does_not_lend_it() -> None:
    background = Background(0.5, lambda: True)

    def job() -> tuple[bool, bool]:
        with torch.enable_grad():
            background.pause()
            inside = torch.is_grad_enabled()
        return inside, torch.is_grad_enabled()

    with torch.no_grad():
        outcome = background.add(job)
        background.advance(rows=0)
        with torch.inference_mode():  # a step
            assert not torch.is_grad_enabled()
        background.advance(rows=0)
        assert outcome.result(0) == (True, False)


def test_work_is_computed_on_the_thread_of_the_engine(engine: Engine) -> None:
    names = {threading.current_thread().name, engine.execute(lambda: threading.current_thread().name)}
    assert len(names) == 2
    assert engine.execute(lambda: engine.execute(lambda: "nested")) == "nested"


def test_answers_go_on_while_work_is_under_way(engine: Engine, runner: CountingRunner) -> None:
    assert runner.gate is not None
    stop, begun = threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        while not stop.is_set():
            engine.pause()
        return "written"

    outcome = list[str]()
    writer = threading.Thread(target=lambda: outcome.append(engine.execute(work)))
    writer.start()
    assert begun.wait(10)
    runner.gate.release(100)
    stream = engine.submit(GenerationRequest((1, 2, 3), SamplingParams(max_new_tokens=4)))
    assert len(list(stream)) == 5
    assert not outcome
    stop.set()
    writer.join(10)
    assert outcome == ["written"]


def test_work_begun_before_the_end_is_finished_and_none_is_begun_after(engine: Engine) -> None:
    begun, outcome = threading.Event(), list[str]()

    def work() -> str:
        begun.set()
        while not engine_closing.is_set():
            engine.pause()
        engine.pause()
        return "written"

    engine_closing = threading.Event()
    writer = threading.Thread(target=lambda: outcome.append(engine.execute(work)))
    writer.start()
    assert begun.wait(10)
    closer = threading.Thread(target=engine.close)
    closer.start()
    engine_closing.set()
    closer.join(10)
    writer.join(10)
    assert outcome == ["written"]
    with pytest.raises(EngineClosed):
        engine.execute(lambda: None)


def test_what_is_urgent_goes_between_two_pieces_of_what_runs() -> None:
    background, trace = Background(0.5, lambda: False), list[str]()

    def job() -> None:
        for piece in "abc":
            trace.append(piece)
            if piece == "a":
                background.add(lambda: trace.append("first"), urgent=True)
                background.add(lambda: trace.append("second"), urgent=True)
            background.pause()

    background.add(job)
    background.add(lambda: trace.append("later"))
    while background.pending:
        background.advance(rows=0)
    assert trace == ["a", "first", "second", "b", "c", "later"]


def test_what_is_urgent_needs_no_savings_and_is_done_before_the_end() -> None:
    background, done = Background(0.1, lambda: True), list[str]()
    pieces = counting(background)
    background.earn(1, 1.0)
    background._credit = 0.0
    background.add(lambda: done.append("published"), urgent=True)
    background.advance(rows=1)
    assert done == ["published"]
    assert pieces == [0]
    other = Background(0.1, lambda: True)
    other.add(lambda: done.append("job"))
    other.add(lambda: done.append("urgent"), urgent=True)
    other.finish()
    assert done == ["published", "urgent", "job"]


def test_what_is_urgent_is_done_within_a_step(engine: Engine, runner: CountingRunner) -> None:
    assert runner.gate is not None
    stream = engine.submit(GenerationRequest((1, 2, 3), SamplingParams(max_new_tokens=1)))
    assert runner.entered.acquire(timeout=10)  # the step is under way, and waits
    steps = engine._background.add(lambda: len(runner.calls), urgent=True)
    runner.gate.release(10)
    assert steps.result(10) == 0
    assert len(list(stream)) == 2
