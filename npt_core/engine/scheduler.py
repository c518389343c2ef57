"""Who computes what in the next step: first come, first served, and nobody waits for a batch.

Running sequences decode one token a step; what is left of the token budget prefills prompts in
chunks of multiples of `PAGE`. Where pages run out, the sequence that came last gives up its own and is
computed again later.
"""

from bisect import insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from npt_core.engine.page_table import PAGE, PageTable
from npt_core.engine.prefix_cache import PrefixCache
from npt_core.engine.sequence import Sequence, Span

EVICTIONS = 2
"""Pages that the cache may lose for each page of a run: prompts that end beside each other free one."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_running` sequences at once; prefill and decoding share `batch_tokens` a step, of which
    prefill always gets at least `PAGE`. One that decodes alone guesses up to `draft_tokens` more.
    """

    max_running: int
    batch_tokens: int
    draft_tokens: int = 0

    def __post_init__(self) -> None:
        if self.max_running < 1 or self.batch_tokens < 1:
            raise ValueError("limits must be at least 1")


class Scheduler:
    """Queues and pages; every sequence added is waiting or running until it is removed."""

    def __init__(self, pages: PageTable, cache: PrefixCache, limits: Limits) -> None:
        self._pages = pages
        self._cache = cache
        self._limits = limits
        self._arrivals = 0
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self.preemptions = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[Sequence]:
        """Every sequence, those that run first."""
        yield from self._running
        yield from self._waiting

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        sequence.arrival = self._arrivals
        self._arrivals += 1
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """A sequence has ended; its pages are free for others."""
        queue = self._running if sequence.pages else self._waiting
        queue.remove(sequence)
        self._release(sequence)

    def plan(self) -> list[Span]:
        """The next step; empty only if nothing waits or runs."""
        spans = self._decodes()
        left = max(self._limits.batch_tokens - len(spans), PAGE)
        for sequence in self._running:
            if not sequence.decoding and left >= PAGE:
                left -= self._plan_chunk(spans, sequence, left)
        for sequence in self._admissible():
            if left < PAGE or not self._admit(sequence):
                break
            left -= self._plan_chunk(spans, sequence, left)
        return self._with_draft(list(spans.values()))

    def done(self, spans: Iterable[Span]) -> None:
        """A step was computed: note how far everybody is, and which pages others may share."""
        for span in spans:
            sequence = span.sequence
            sequence.computed = span.end
            page_size = self._pages.page_size
            while page_size * (sequence.cached + 1) <= min(span.end, sequence.prompt_length):
                start = page_size * sequence.cached
                tokens = sequence.tokens[start : start + page_size]
                sequence.node = self._cache.insert(sequence.node, tokens, sequence.pages[sequence.cached])
                sequence.cached += 1

    def _decodes(self) -> dict[int, Span]:
        spans: dict[int, Span] = {}
        for sequence in tuple(self._running):
            # One that an earlier sequence of this very step has driven out holds no page any more.
            if sequence.pages and sequence.decoding and self._grow(sequence, spans):
                spans[sequence.arrival] = Span(sequence, sequence.computed, len(sequence.tokens))
        return spans

    def _with_draft(self, spans: list[Span]) -> list[Span]:
        """Beside one row, a few more cost little; in company they would take others' time."""
        if len(spans) != 1 or spans[0].rows > 1:
            return spans
        sequence = spans[0].sequence
        draft = sequence.draft(self._limits.draft_tokens, self._pages.page_size * len(sequence.pages))
        return [replace(spans[0], draft=draft)]

    def _plan_chunk(self, spans: dict[int, Span], sequence: Sequence, left: int) -> int:
        """Plan what comes next of a prompt, and of the answer so far if the sequence was preempted, in at
        most `left` rows; returns the rows.
        """
        start, prompt_end = sequence.computed, max(sequence.computed, sequence.prompt_length)
        end = min(start + left // PAGE * PAGE, prompt_end)
        if end == prompt_end:
            end = min(end + left - Span(sequence, start, end).rows, len(sequence.tokens))
        span = spans[sequence.arrival] = Span(sequence, start, end)
        return span.rows

    def _admissible(self) -> Iterator[Sequence]:
        """Who may start, in order. The others of a request wait for its first, if its prompt has pages to
        share.
        """
        for sequence in tuple(self._waiting):
            if len(self._running) >= self._limits.max_running:
                return
            if not self._awaits_prompt(sequence):
                yield sequence

    def _awaits_prompt(self, sequence: Sequence) -> bool:
        leader = sequence.leader
        if leader is None or not (leader.prefilling and leader.stream.is_open(leader.index)):
            return False
        return self._cache.enabled and sequence.prompt_length > self._pages.page_size

    def _admit(self, sequence: Sequence) -> bool:
        """Give `sequence` pages for all its tokens and move it to the running ones, or do nothing."""
        # The last token is always computed: its logits are what the step is for.
        reusable = sequence.tokens[: sequence.prompt_length - 1]
        pages, node = self._cache.match(sequence.cache_root, reusable)
        sequence.pages, sequence.node, sequence.cached = pages, node, len(pages)
        sequence.computed = self._pages.page_size * len(pages)
        most = self._pages.needed(sequence.limit) - len(pages)
        needed = self._pages.needed(len(sequence.tokens)) - len(pages)
        # Keys and values that lie in one piece are read without a copy.
        pages += self._take_run(most) or self._pages.take_run(needed)
        while len(pages) < self._pages.needed(len(sequence.tokens)):
            page = self._take(pages[-1] if pages else None)
            if page is None:
                self._release(sequence)
                return False
            pages.append(page)
        self._cache.count(sequence.prompt_length, sequence.computed)
        self._waiting.remove(sequence)
        insort(self._running, sequence, key=lambda s: s.arrival)
        return True

    def _grow(self, sequence: Sequence, spans: dict[int, Span]) -> bool:
        """A page for the next token, at the cost of whoever came last; False if that is itself."""
        while len(sequence.pages) < self._pages.needed(len(sequence.tokens)):
            page = self._take(sequence.pages[-1])
            if page is not None:
                sequence.pages.append(page)
                continue
            victim = self._running[-1]
            spans.pop(victim.arrival, None)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _take_run(self, count: int) -> list[int]:
        """`count` pages in a row, if need be where prompts were that nobody asked for lately."""
        run = self._pages.take_run(count)
        # Pages apart are copied in every step, which costs more than to read a prompt again; but where pages
        # are large, a kernel reads them wherever they lie.
        evictions = EVICTIONS * count if self._pages.page_size == PAGE else 0
        for _ in range(evictions):
            if run or not self._cache.evict():
                break
            run = self._pages.take_run(count)
        return run

    def _take(self, after: int | None) -> int | None:
        page = self._pages.take(after)
        if page is None and (self._cache.evict() or self._trim()):
            page = self._pages.take(after)
        return page

    def _trim(self) -> bool:
        """Take back pages that a sequence was given ahead of its need."""
        for sequence in reversed(self._running):
            needed = self._pages.needed(len(sequence.tokens))
            spare = sequence.pages[needed:]
            if spare:
                del sequence.pages[needed:]
                self._pages.release(spare)
                return True
        return False

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._release(sequence)
        insort(self._waiting, sequence, key=lambda s: s.arrival)
        self.preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        self._pages.release(sequence.pages)
        sequence.reset()
