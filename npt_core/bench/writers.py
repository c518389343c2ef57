"""A fact a second beside the load, and what its publication costs."""

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from npt_core.bank import FactWeights
from npt_core.consolidation import ConsolidationError, WriteRequest
from npt_core.engine import Engine
from npt_core.evaluation.writing import drawn
from npt_core.loading import Runtime

SEED, MOST = 7, 1000
"""Facts of the evaluation, in an order of their own."""


@dataclass
class Writing:
    """Facts written, refused, seconds each took, and seconds in which the bank changed."""

    written: int = 0
    refused: int = 0
    seconds: list[float] = field(default_factory=list)
    publications: list[float] = field(default_factory=list)


class Writer:
    """Within a block, one fact is begun every second, or as soon as the last is done, until it is
    `finishing`; at its end the last one is done, too.
    """

    def __init__(self, runtime: Runtime, engine: Engine) -> None:
        self.outcome = Writing()
        self._runtime = runtime
        self._engine = engine
        # Drawn before the clock runs: it keeps the interpreter busy.
        self._sentences = iter(drawn("random", SEED, MOST).statements)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Writer":
        self._stop.clear()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def finishing(self) -> bool:
        """From now on no fact is begun; whether one is still being written."""
        self._stop.set()
        return self._thread is not None and self._thread.is_alive()

    def _work(self) -> None:
        while not self._stop.is_set():
            begin = time.perf_counter()
            self._write(next(self._sentences))
            took = time.perf_counter() - begin
            self.outcome.seconds.append(took)
            self._stop.wait(max(1.0 - took, 0.0))

    def _write(self, fact: str) -> None:
        outcome = self.outcome
        try:
            consolidated = self._engine.execute(
                lambda: self._runtime.consolidator.consolidate(WriteRequest(fact))
            )
        except ConsolidationError:
            outcome.refused += 1
            return
        paused = self._engine.execute(lambda: self._publish(fact, consolidated.weights), urgent=True)
        outcome.publications.append(paused)
        outcome.written += 1

    def _publish(self, fact: str, weights: FactWeights) -> float:
        """Seconds in which the bank changes: no step is computed meanwhile."""
        bank, begin = self._runtime.bank, time.perf_counter()
        bank.publish(bank.version + 1, {fact: weights})
        return time.perf_counter() - begin
