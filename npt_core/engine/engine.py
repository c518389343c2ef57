"""The engine: requests in, streams of tokens out, each at the weights version it was admitted at.

One thread owns everything that runs: it schedules a step, computes it, hands out the tokens, and
between steps goes on with other work, such as the consolidation of a fact.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection
from collections.abc import Sequence as Seq
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from npt_core.engine.background import Background
from npt_core.engine.config import EngineConfig
from npt_core.engine.errors import (
    EmptyPrompt,
    EngineClosed,
    EngineFailed,
    PromptTooLong,
    QueueFull,
    UnknownToken,
    VersionGone,
    VersionNotFound,
)
from npt_core.engine.events import FinishEvent, FinishReason, TokenEvent
from npt_core.engine.page_table import PageTable
from npt_core.engine.prefix_cache import PrefixCache
from npt_core.engine.request import GenerationRequest
from npt_core.engine.sampler import Logprobs, Sampler, all_logprobs, choose_all
from npt_core.engine.scheduler import Limits, Scheduler
from npt_core.engine.sequence import Sequence, Span
from npt_core.engine.stream import Stream

log = logging.getLogger(__name__)
T = TypeVar("T")


class StepRunner(Protocol):
    """What computes a step; `npt_core.engine.runner.Runner`, or a double of it."""

    @property
    def num_pages(self) -> int:
        """Pages of keys and values that it can hold."""

    @property
    def page_size(self) -> int:
        """Tokens of a page."""

    @property
    def max_positions(self) -> int:
        """Prompt and new tokens together never exceed this, nor what all pages hold."""

    @property
    def num_tokens(self) -> int:
        """Ids of tokens are below it."""

    @property
    def draft_tokens(self) -> int:
        """Draft tokens that are worth their time beside a sequence that decodes alone."""

    @property
    def batch_tokens(self) -> int:
        """Tokens of a step that reads prompts: more would make those who decode wait for long."""

    def run(self, spans: Seq[Span], between: Callable[[], None], /) -> Tensor:
        """Next-token logits `[samples, vocab]`, float32, of the spans that sample and, each after its
        span's, of drafts. `between` may publish versions, which the spans do not see; it is called wherever
        that can be done in the middle of a step.
        """


@dataclass(slots=True)
class DraftCount:
    """Draft tokens computed, and those of them that were the next token."""

    tried: int = 0
    accepted: int = 0


class Versioned(Protocol):
    """What the engine needs of the bank: the newest published version, and the oldest that is kept."""

    @property
    def version(self) -> int: ...

    @property
    def oldest(self) -> int: ...


class Engine:
    """Answers requests on a thread of its own until it is closed.

    Of `bank`, the versions `bank.oldest` to `bank.version` can be asked for.
    """

    def __init__(
        self,
        runner: StepRunner,
        bank: Versioned,
        eos_token_ids: Collection[int],
        config: EngineConfig = EngineConfig(),  # noqa: B008  (frozen)
    ) -> None:
        self.runner = runner
        self._bank = bank
        self._eos = frozenset(eos_token_ids)
        self._config = config
        self._background = Background(config.writers_share, self._due)
        self.pages = PageTable(runner.num_pages, runner.page_size)
        self.prefix_cache = PrefixCache(self.pages, config.prefix_cache)
        draft_tokens = runner.draft_tokens if config.drafts else 0
        limits = Limits(config.max_running, config.batch_tokens or runner.batch_tokens, draft_tokens)
        self._scheduler = Scheduler(self.pages, self.prefix_cache, limits)
        self._samplers: dict[Sequence, Sampler] = {}
        self._inbox: list[Sequence] = []
        self.drafts = DraftCount()
        self._changed = threading.Condition()
        self._closing = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="npt-engine", daemon=True)
        self._thread.start()

    @property
    def failure(self) -> str | None:
        """Why the engine's thread ended by itself; it answers nobody any more, and never will."""
        return None if self._error is None else f"{type(self._error).__name__}: {self._error}"

    @property
    def max_positions(self) -> int:
        """Prompt and new tokens together never exceed this."""
        return self.runner.max_positions

    @property
    def running(self) -> int:
        """Sequences being computed."""
        return self._scheduler.running

    @property
    def waiting(self) -> int:
        """Sequences admitted and not started, or set back because pages ran out."""
        return len(self._inbox) + self._scheduler.waiting

    @property
    def kv_usage(self) -> float:
        """Share of the pages that running sequences hold."""
        idle = self.pages.free + self.prefix_cache.evictable
        return max(self.pages.size - idle, 0) / self.pages.size

    @property
    def preemptions(self) -> int:
        """How often a sequence was set back because pages ran out."""
        return self._scheduler.preemptions

    def submit(self, request: GenerationRequest) -> Stream:
        """Admit `request`, pinned to a weights version from here on. Thread-safe.

        Raises:
            EmptyPrompt: there is no token to continue.
            PromptTooLong: the prompt leaves no position for a new token.
            UnknownToken: the prompt holds a number that is no token of the model.
            VersionNotFound: `request.weights_version` was never published.
            VersionGone: it is older than the bank keeps.
            QueueFull: its sequences do not all fit the queue; none was admitted.
            EngineClosed: after `close`; EngineFailed after a `failure`.
        """
        self._check_prompt(request.prompt_ids)
        n = request.params.n
        with self._changed:
            self._check_open()
            # Not `running` and `waiting`: between reading the two, sequences pass from one to the other.
            open_sequences = len(self._inbox) + len(self._samplers)
            if open_sequences + n > self._config.queue_size + self._config.max_running:
                raise QueueFull(self._config.queue_size)
            stream = Stream(n, self._pin(request.weights_version))
            self._inbox += self._sequences(request, stream)
            self._changed.notify()
        return stream

    def oldest_pinned(self) -> int | None:
        """The oldest version of a sequence that runs or waits. Called from work that `execute` runs."""
        with self._changed:
            return min((s.version for s in (*self._samplers, *self._inbox)), default=None)

    def execute(self, work: Callable[[], T], urgent: bool = False) -> T:
        """What `work` returns or raises, computed on the engine's thread between steps. Thread-safe.

        Where `work` calls `pause`, steps go first. What is `urgent`, a publication, is done in the middle of
        the current step or at its end, even where other work is half done.

        Raises:
            EngineClosed: after `close`; EngineFailed after a `failure`, also if it comes meanwhile.
        """
        if threading.current_thread() is self._thread:
            return work()
        return self.post(work, urgent).result()

    def post(self, work: Callable[[], T], urgent: bool = False) -> "Future[T]":
        """As `execute`, without waiting for the outcome."""
        with self._changed:
            self._check_open()
            outcome = self._background.add(work, urgent)
            self._changed.notify()
        return outcome

    def pause(self) -> None:
        """Called from work that `execute` runs, in places where steps may go first."""
        self._background.pause()

    def close(self, timeout: float | None = 10.0) -> None:
        """Cancel every request, each with its end, and finish what is executed; waits `timeout` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)

    def _check_open(self) -> None:
        if self.failure is not None:
            raise EngineFailed(self.failure) from self._error
        if self._closing:
            raise EngineClosed

    def _check_prompt(self, ids: Seq[int]) -> None:
        if not ids:
            raise EmptyPrompt
        if len(ids) >= self.max_positions:
            raise PromptTooLong(len(ids), self.max_positions - 1)
        # It would fail the step, and with it everybody's answer.
        if not 0 <= min(ids) <= max(ids) < self.runner.num_tokens:
            raise UnknownToken(self.runner.num_tokens)

    def _pin(self, version: int | None) -> int:
        newest = self._bank.version
        if version is None:
            return newest
        if not 0 <= version <= newest:
            raise VersionNotFound(version, newest)
        if version < self._bank.oldest:
            raise VersionGone(version, self._bank.oldest, newest)
        return version

    def _sequences(self, request: GenerationRequest, stream: Stream) -> list[Sequence]:
        limit = min(len(request.prompt_ids) + request.params.max_new_tokens, self.max_positions)
        first = Sequence(request, stream, 0, limit)
        return [first, *(Sequence(request, stream, i, limit, first) for i in range(1, request.params.n))]

    def _work(self) -> None:
        try:
            while self._accept():
                spans = self._plan()
                rows = sum(span.rows + len(span.draft) for span in spans)
                self._background.advance(rows)
                if spans:
                    self._step(spans, rows)
            for sequence in tuple(self._scheduler):
                self._end(sequence, FinishReason.CANCELLED)
            self._background.finish()
        except BaseException as error:
            # Nobody else computes: whoever waits must hear of it, and whoever comes.
            log.exception("the engine has failed")
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Refuse everybody from now on, and end what was taken on, whatever state things are in."""
        with self._changed:
            self._error = error
            left = (*self._samplers, *self._inbox)
            self._samplers.clear()
            self._inbox.clear()
        for sequence in left:
            with suppress(Exception):  # whoever listens may be what failed
                sequence.stream.put(FinishEvent(sequence.index, FinishReason.ERROR))
        refusal = EngineFailed(f"{type(error).__name__}: {error}")
        refusal.__cause__ = error
        self._background.fail(refusal)

    def _due(self) -> bool:
        """Whether there is more to do than what is executed, while nothing runs."""
        return bool(self._inbox) or self._closing

    def _accept(self) -> bool:
        """Take in what was submitted, waiting for it if there is nothing else; False once closing."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._due() or self.running or self.waiting or self._background.pending
            )
            for sequence in self._inbox:
                self._scheduler.add(sequence)
                self._samplers[sequence] = Sampler(sequence.request.params, sequence.index)
            self._inbox.clear()
            return not self._closing

    def _plan(self) -> list[Span]:
        """What the next step computes."""
        if not (self.running or self.waiting):
            return []
        self._end_interrupted()
        spans = self._scheduler.plan()
        for span in spans:
            span.sequence.stream.mark_started()
        return spans

    def _step(self, spans: Seq[Span], rows: int) -> None:
        noticed = any(span.sequence.decoding for span in spans)
        begin = time.perf_counter()
        try:
            self._hand_out(spans, self.runner.run(spans, self._background.attend))
        except Exception:
            # The last line of defence: a failing step must not take the engine along.
            log.exception("a step failed")
            for span in spans:
                self._end(span.sequence, FinishReason.ERROR)
        self._background.earn(rows, time.perf_counter() - begin, noticed)

    def _end_interrupted(self) -> None:
        now = time.monotonic()
        for sequence in tuple(self._scheduler):
            deadline = sequence.request.deadline
            if sequence.stream.is_cancelled(sequence.index):
                self._end(sequence, FinishReason.CANCELLED)
            elif deadline is not None and now >= deadline:
                self._end(sequence, FinishReason.DEADLINE)

    def _hand_out(self, spans: Seq[Span], logits: Tensor) -> None:
        """Give every sequence that reached its last token the next one."""
        sampled = [span.sequence for span in spans if span.samples]
        chosen = self._choose(sampled, logits[: len(sampled)])
        failed = {s for s, (token, _) in zip(sampled, chosen, strict=True) if token is None}
        # After the choice: nobody shall find pages that led to no number.
        self._scheduler.done(span for span in spans if span.sequence not in failed)
        for sequence, (token, likely) in zip(sampled, chosen, strict=True):
            self._give(sequence, token, likely)
        if len(logits) > len(sampled):
            self._follow_draft(spans[-1], logits[len(sampled) :])

    def _follow_draft(self, span: Span, logits: Tensor) -> None:
        """As far as the guess was right, the `logits` `[draft, vocab]` give one more token each."""
        sequence, hits = span.sequence, 0
        for token, row in zip(span.draft, logits.split(1), strict=True):
            if sequence not in self._samplers or sequence.tokens[-1] != token:
                break
            hits += 1
            sequence.computed += 1
            ((following, likely),) = self._choose([sequence], row)
            self._give(sequence, following, likely)
        sequence.lookup.tell(hits)
        self.drafts.tried += len(span.draft)
        self.drafts.accepted += hits

    def _choose(self, sequences: Seq[Sequence], logits: Tensor) -> list[tuple[int | None, Logprobs]]:
        """The next token of each of `sequences` by its row of `logits`, and what is told of it."""
        tokens = choose_all(logits, [(self._samplers[s], s.tokens) for s in sequences])
        told = all_logprobs(logits, tokens, [s.request.params.logprobs for s in sequences])
        return list(zip(tokens, told, strict=True))

    def _give(self, sequence: Sequence, token: int | None, likely: Logprobs) -> None:
        """`sequence` continues with `token`, or ends."""
        if token is None:
            log.error("version %d gives no finite scores", sequence.version)
            self._end(sequence, FinishReason.ERROR)
            return
        if token in self._eos:
            self._end(sequence, FinishReason.STOP)
            return
        sequence.tokens.append(token)
        sequence.stream.put(TokenEvent(sequence.index, token, *likely))
        if len(sequence.tokens) >= sequence.limit:
            self._end(sequence, FinishReason.LENGTH)

    def _end(self, sequence: Sequence, reason: FinishReason) -> None:
        # Before the end is told: whoever hears it may submit again and find the place free.
        try:
            if self._samplers.pop(sequence, None) is not None:
                self._scheduler.remove(sequence)
        finally:
            sequence.stream.put(FinishEvent(sequence.index, reason))
