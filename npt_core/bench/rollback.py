"""How long until an earlier version is in force again, while streams run."""

import statistics
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from npt_core.bank import Bank, FactWeights
from npt_core.bench.columns import synthetic
from npt_core.bench.load import answered, prompts, running
from npt_core.engine import Engine, alone
from npt_core.evaluation.statistics import percentile
from npt_core.loading import Runtime

_FACTS, _COLUMNS = 1000, 9
"""What a fact of the reference model writes, in the middle."""
_KEPT = 10
"""Versions that can still be asked for; what only older ones see is dropped."""
_PAUSE_S = 0.03
"""Between two rollbacks: they meet the steps anywhere."""


def measure_rollback(runtime: Runtime, streams: int, undone: int, seconds: float) -> dict[str, Any]:
    """Rollbacks by turns to a version without `undone` of 1,000 facts and to one with all of them, for
    `seconds`.

    `effective`: from the request until `bank.version` is the new one, whose facts are those of the old;
    it waits for half a layer of the step that is computed. `pause`: of that, in which the bank changes.
    `answered`: until who asked is told, a thread that waits for Python's lock meanwhile.
    """
    model: Any = runtime.model
    bank = alone(_bank, runtime)
    names = [f"fact {number}" for number in range(undone)]
    births = alone(lambda: {name: _fact(runtime) for name in names})
    effective, pauses, answers = list[float](), list[float](), list[float]()
    try:
        with running(model, bank, streams) as engine, _load(engine, streams, model.config.vocab_size):
            begin = time.perf_counter()
            while len(effective) < 2 or time.perf_counter() - begin < seconds:
                asked, version = time.perf_counter(), bank.version + 1
                change = _publication(bank, {}, names) if version % 2 == 0 else _publication(bank, births, ())
                pause, done = engine.execute(change, urgent=True)
                answers.append(time.perf_counter() - asked)
                assert bank.version == version
                pauses.append(pause)
                effective.append(done - asked)
                engine.execute(lambda: bank.retire(bank.version - _KEPT, engine.oldest_pinned))
                time.sleep(_PAUSE_S)
    finally:
        runtime.bank.attach()
    return {
        "streams": streams,
        "facts": _FACTS,
        "undone": undone,
        "rollbacks": len(effective),
        "effective_p50_s": statistics.median(effective),
        "effective_p99_s": percentile(effective, 0.99),
        "effective_max_s": max(effective),
        "answered_p50_s": statistics.median(answers),
        "answered_p99_s": percentile(answers, 0.99),
        "pause_p50_s": statistics.median(pauses),
        "pause_max_s": max(pauses),
    }


def _publication(
    bank: Bank, births: Mapping[str, FactWeights], deaths: Collection[str]
) -> Callable[[], tuple[float, float]]:
    """Publishes the next version; returns the seconds it takes, and when it is there."""

    def publish() -> tuple[float, float]:
        begin = time.perf_counter()
        bank.publish(bank.version + 1, births, deaths)
        done = time.perf_counter()
        return done - begin, done

    return publish


def _fact(runtime: Runtime) -> FactWeights:
    spaces = runtime.consolidator.calibration.whitening
    d_model = runtime.model.config.hidden_size
    return FactWeights({i: synthetic(_COLUMNS, w.projection.shape[1], d_model) for i, w in spaces.items()})


def _bank(runtime: Runtime) -> Bank:
    bank = Bank(runtime.model, runtime.consolidator.calibration.whitening)
    bank.publish(1, {f"fact {number}": _fact(runtime) for number in range(_FACTS)})
    return bank.attach()


@contextmanager
def _load(engine: Engine, streams: int, vocabulary: int) -> Iterator[None]:
    """Rounds of streams, within the block."""
    stop = threading.Event()

    def rounds() -> None:
        seed = 0
        while not stop.is_set():
            answered(engine, prompts(streams, vocabulary, seed))
            seed += 1

    thread = threading.Thread(target=rounds, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
