"""The engine: requests in, streams of tokens out, each at the weights version it was admitted at.

A first, simple one: a few worker threads, each running the plain decode loop of one sequence.
"""

import logging
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from npt_core.engine.decoding import CausalModel, Decoder
from npt_core.engine.errors import EmptyPrompt, PromptTooLong, VersionNotFound
from npt_core.engine.events import FinishEvent, FinishReason
from npt_core.engine.request import GenerationRequest
from npt_core.engine.stream import Stream
from npt_core.engine.waiting_line import WaitingLine

log = logging.getLogger(__name__)


class Versioned(Protocol):
    """What the engine needs of the bank: the newest published version."""

    @property
    def version(self) -> int: ...


@dataclass(frozen=True, slots=True)
class _Job:
    request: GenerationRequest
    stream: Stream
    index: int

    def end(self, reason: FinishReason) -> None:
        self.stream.put(FinishEvent(self.index, reason))


class Engine:
    """Runs up to `max_concurrency` sequences at once while at most `queue_size` more wait.

    `model` takes `weights_version` and `modulation_scale` beside the usual arguments of a
    causal language model; of `bank`, the versions 0 to `bank.version` exist.
    """

    def __init__(
        self,
        model: CausalModel,
        bank: Versioned,
        eos_token_ids: Collection[int],
        max_concurrency: int = 1,
        queue_size: int = 64,
    ) -> None:
        self._model = model
        self._bank = bank
        self._eos = frozenset(eos_token_ids)
        self._line: WaitingLine[_Job] = WaitingLine(max_concurrency, queue_size)
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, name=f"npt-decode-{i}", daemon=True)
            for i in range(max_concurrency)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def max_positions(self) -> int:
        """Prompt and new tokens together never exceed this."""
        limit: int = self._model.config.max_position_embeddings
        return limit

    @property
    def running(self) -> int:
        """Sequences being decoded."""
        return self._line.running

    @property
    def waiting(self) -> int:
        """Sequences admitted and not started."""
        return self._line.waiting

    def submit(self, request: GenerationRequest) -> Stream:
        """Admit `request`, pinned to a weights version from here on. Thread-safe.

        Raises:
            EmptyPrompt: there is no token to continue.
            PromptTooLong: the prompt leaves no position for a new token.
            VersionNotFound: `request.weights_version` was never published.
            QueueFull: its sequences do not all fit the queue; none was admitted.
            EngineClosed: after `close`.
        """
        self._check_prompt(len(request.prompt_ids))
        stream = Stream(request.params.n, self._pin(request.weights_version))
        self._line.put([_Job(request, stream, index) for index in range(request.params.n)])
        return stream

    def close(self, timeout: float | None = 10.0) -> None:
        """Cancel everything; every stream gets its end. Waits `timeout` seconds a worker."""
        self._closing.set()
        for job in self._line.close():
            job.end(FinishReason.CANCELLED)
        for thread in self._threads:
            thread.join(timeout)

    def _check_prompt(self, length: int) -> None:
        if length == 0:
            raise EmptyPrompt
        if length >= self.max_positions:
            raise PromptTooLong(length, self.max_positions - 1)

    def _pin(self, version: int | None) -> int:
        newest = self._bank.version
        if version is None:
            return newest
        if not 0 <= version <= newest:
            raise VersionNotFound(version, newest)
        return version

    def _work(self) -> None:
        while (job := self._line.take()) is not None:
            job.stream.mark_started()
            reason = self._decode_safely(job)
            # Before the end is told: whoever hears it may submit again and find the place free.
            self._line.done()
            job.end(reason)

    def _decode_safely(self, job: _Job) -> FinishReason:
        try:
            return self._decode(job)
        except Exception:
            # The last line of defence: a failing request must not take its worker along.
            log.exception("decoding failed")
            return FinishReason.ERROR

    def _decode(self, job: _Job) -> FinishReason:
        prompt = len(job.request.prompt_ids)
        room = min(job.request.params.max_new_tokens, self.max_positions - prompt)
        decoder = Decoder(self._model, job.request, job.index, job.stream.weights_version)
        for _ in range(room):
            if (interrupted := self._interruption(job)) is not None:
                return interrupted
            event = decoder.step()
            if event.token_id in self._eos:
                return FinishReason.STOP
            job.stream.put(event)
        return FinishReason.LENGTH

    def _interruption(self, job: _Job) -> FinishReason | None:
        if self._closing.is_set() or job.stream.is_cancelled(job.index):
            return FinishReason.CANCELLED
        deadline = job.request.deadline
        if deadline is not None and time.monotonic() >= deadline:
            return FinishReason.DEADLINE
        return None
