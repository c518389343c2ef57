"""Scheduler, pages and prefix cache under random traffic, against a memory that knows its content."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from npt_core.engine import FinishEvent, FinishReason, GenerationRequest, SamplingParams, Stream
from npt_core.engine.page_table import PAGE, PageTable
from npt_core.engine.prefix_cache import PrefixCache
from npt_core.engine.scheduler import Limits, Scheduler
from npt_core.engine.sequence import Sequence

PAGES, BATCH = 12, 40


def after(sequence: Sequence, position: int) -> int:
    """The token that follows a prefix: a function of it alone, as of a greedy model."""
    return hash((sequence.version, *sequence.tokens[:position])) % 7


class Traffic(RuleBasedStateMachine):
    page_size = PAGE

    def __init__(self) -> None:
        super().__init__()
        self.pages = PageTable(PAGES * PAGE // self.page_size, self.page_size)
        self.cache = PrefixCache(self.pages)
        self.scheduler = Scheduler(self.pages, self.cache, Limits(max_running=4, batch_tokens=BATCH))
        self.memory: dict[int, Any] = {}
        self.open: list[Sequence] = []
        self.ended: list[Sequence] = []
        self.started: list[int] = []

    @rule(
        base=st.integers(0, 2),
        length=st.integers(1, PAGES * PAGE - 1),
        new=st.integers(1, 60),
        n=st.integers(1, 3),
        version=st.integers(0, 1),
    )
    def add(self, base: int, length: int, new: int, n: int, version: int) -> None:
        prompt = tuple((base + i // 20) % 5 for i in range(length))
        request = GenerationRequest(prompt, SamplingParams(max_new_tokens=new, n=n))
        stream, leader = Stream(n, version), None
        for index in range(n):
            sequence = Sequence(request, stream, index, min(length + new, PAGES * PAGE), leader)
            leader = leader or sequence
            self.scheduler.add(sequence)
            self.open.append(sequence)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 50))
    def cancel(self, which: int) -> None:
        self._end(self.open[which % len(self.open)])

    @precondition(lambda self: self.open)
    @rule(steps=st.integers(1, 5))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            if self.open:
                self._step()
                self._check_cache()

    def _step(self) -> None:
        held = [sequence for sequence in self.open if sequence.pages]
        spans = self.scheduler.plan()
        assert spans, "somebody waits and nobody runs"
        self._check_fairness(held, {span.sequence for span in spans})
        assert len({span.sequence for span in spans}) == len(spans)
        decoding = sum(span.sequence.decoding for span in spans)
        assert sum(span.rows for span in spans) <= decoding + max(BATCH - decoding, PAGE)
        for span in spans:
            sequence = span.sequence
            assert span.start == sequence.computed < span.end <= len(sequence.tokens)
            for position in range(span.start, span.end):
                self.memory[self._slot(sequence, position)] = self._content(sequence, position)
        for span in spans:  # all of them read what all of them have written
            for position in range(span.end):
                found = self.memory[self._slot(span.sequence, position)]
                assert found == self._content(span.sequence, position)
        self.scheduler.done(spans)
        for span in spans:
            if span.samples:
                sequence = span.sequence
                sequence.tokens.append(after(sequence, len(sequence.tokens)))
                if len(sequence.tokens) >= sequence.limit:
                    self._end(sequence)

    @invariant()
    def pages_are_held_by_those_who_use_them(self) -> None:
        uses = [page for sequence in self.open for page in sequence.pages]
        uses += [entry.page for entry in self.cache._entries.values()]
        assert all(self.pages.references(page) == uses.count(page) for page in range(self.pages.size))
        assert self.scheduler.running + self.scheduler.waiting == len(self.open)
        assert set(self.scheduler) == set(self.open)

    @invariant()
    def preempted_sequences_have_lost_nothing(self) -> None:
        for sequence in self.open:
            answer = range(sequence.prompt_length, len(sequence.tokens))
            assert all(sequence.tokens[i] == after(sequence, i) for i in answer)

    def teardown(self) -> None:
        for _ in range(10_000):
            if not self.open:
                break
            self.step(1)
        assert not self.open, "somebody never ends"
        assert self.pages.free + self.cache.evictable == self.pages.size

    def _check_cache(self) -> None:
        """Pages hold what they are found by."""
        paths: dict[Any, tuple[Any, tuple[int, ...]]] = {}  # root and tokens up to each node
        for (parent, tokens), entry in sorted(self.cache._entries.items(), key=lambda item: item[1].node):
            root, before = paths.get(parent, (parent, ()))
            if isinstance(root, int):
                continue  # the page before it was evicted: nobody finds it any more
            paths[entry.node] = root, before + tokens
            for i in range(len(tokens)):
                found = self.memory[entry.page * self.page_size + i]
                assert found == (root, (before + tokens)[: len(before) + i + 1])

    def _check_fairness(self, held: list[Sequence], planned: set[Sequence]) -> None:
        """Who came first goes on in every step; nobody is overtaken, and who gives way came last."""
        runs = [sequence for sequence in self.open if sequence.pages]
        assert min(runs, key=lambda s: s.arrival) in planned
        started = [sequence.arrival for sequence in runs if sequence not in held]
        for sequence in self.open:
            awaits = sequence.leader is not None and sequence.leader.prefilling
            awaits &= sequence.prompt_length > self.page_size
            if not sequence.pages and not awaits:
                assert all(sequence.arrival > arrival for arrival in started), "overtaken"
        kept = [sequence.arrival for sequence in runs if sequence in held]
        for sequence in held:
            if not sequence.pages:
                assert all(sequence.arrival > arrival for arrival in kept), "gave way to a later one"

    def _slot(self, sequence: Sequence, position: int) -> int:
        return sequence.pages[position // self.page_size] * self.page_size + position % self.page_size

    def _content(self, sequence: Sequence, position: int) -> Any:
        return sequence.cache_root, tuple(sequence.tokens[: position + 1])

    def _end(self, sequence: Sequence) -> None:
        self.open.remove(sequence)
        self.scheduler.remove(sequence)
        sequence.stream.put(FinishEvent(sequence.index, FinishReason.STOP))


Traffic.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestTraffic = Traffic.TestCase


class LargePages(Traffic):
    """Pages that hold several chunks of a prompt, as on a GPU."""

    page_size = 3 * PAGE


LargePages.TestCase.settings = settings(max_examples=20, stateful_step_count=40, deadline=None)
TestLargePages = LargePages.TestCase


def scheduler(pages: int = 64, **limits: int) -> Scheduler:
    table = PageTable(pages)
    return Scheduler(table, PrefixCache(table), Limits(**{"max_running": 8, "batch_tokens": 64, **limits}))


def sequence(length: int, new: int = 8, first: int = 0) -> Sequence:
    prompt = tuple(range(first, first + length))
    return Sequence(GenerationRequest(prompt), Stream(1, 0), 0, length + new)


def compute(scheduler: Scheduler) -> list[tuple[int, int, int]]:
    """One step; `(arrival, start, end)` of its spans."""
    spans = scheduler.plan()
    scheduler.done(spans)
    for span in spans:
        if span.samples:
            span.sequence.tokens.append(1)
    return [(span.sequence.arrival, span.start, span.end) for span in spans]


def test_long_prompt_is_read_in_chunks_while_others_decode() -> None:
    queue = scheduler()
    queue.add(sequence(10))
    assert compute(queue) == [(0, 0, 10)]
    queue.add(sequence(100, first=200))
    assert compute(queue) == [(0, 10, 11), (1, 0, 48)]
    assert compute(queue) == [(0, 11, 12), (1, 48, 96)]
    assert compute(queue) == [(0, 12, 13), (1, 96, 100)]
    assert compute(queue) == [(0, 13, 14), (1, 100, 101)]


def test_those_who_came_first_start_first() -> None:
    queue = scheduler(max_running=2)
    for first in (0, 100, 200):
        queue.add(sequence(5, first=first))
    assert [arrival for arrival, _, _ in compute(queue)] == [0, 1]
    assert (queue.running, queue.waiting) == (2, 1)


def test_known_prefix_is_not_computed_again_but_its_last_token_is() -> None:
    queue = scheduler()
    for _ in range(2):
        queue.add(sequence(48))
        spans = compute(queue)
    assert spans[-1] == (1, 32, 48)


def test_pages_of_an_answer_are_not_found_by_those_who_continue_it() -> None:
    """Decoding rounds differently from reading: a hit would change bits."""
    queue = scheduler()
    first = sequence(20, new=40)
    queue.add(first)
    while len(first.tokens) < first.limit:
        compute(queue)
    queue.add(Sequence(GenerationRequest(tuple(first.tokens)), Stream(1, 0), 0, 70))
    assert compute(queue)[-1][:2] == (1, PAGE)


def test_other_version_shares_nothing() -> None:
    queue = scheduler()
    queue.add(sequence(48))
    compute(queue)
    queue.add(Sequence(GenerationRequest(tuple(range(48))), Stream(1, 1), 0, 60))
    assert compute(queue)[-1] == (1, 0, 48)


def test_siblings_wait_for_the_prompt_and_share_its_pages() -> None:
    queue = scheduler()
    request, stream = GenerationRequest(tuple(range(40)), SamplingParams(n=3)), Stream(3, 0)
    first = Sequence(request, stream, 0, 50)
    others = [Sequence(request, stream, i, 50, first) for i in (1, 2)]
    for each in (first, *others):
        queue.add(each)
    assert compute(queue) == [(0, 0, 40)]
    assert compute(queue) == [(0, 40, 41), (1, 32, 40), (2, 32, 40)]
    assert first.pages[:2] == others[0].pages[:2] == others[1].pages[:2]
    assert not set(first.pages[2:]) & set(others[0].pages[2:])


@pytest.mark.parametrize(("length", "cached"), [(PAGE, True), (40, False)])
def test_siblings_with_nothing_to_share_start_at_once(length: int, cached: bool) -> None:
    table = PageTable(64)
    queue = Scheduler(table, PrefixCache(table, cached), Limits(8, 200))
    request, stream = GenerationRequest(tuple(range(length)), SamplingParams(n=2)), Stream(2, 0)
    first = Sequence(request, stream, 0, 50)
    for each in (first, Sequence(request, stream, 1, 50, first)):
        queue.add(each)
    assert compute(queue) == [(0, 0, length), (1, 0, length)]


def test_last_one_gives_up_its_pages_and_comes_back() -> None:
    queue = scheduler(pages=4)
    early, late = sequence(30, new=30), sequence(30, new=30, first=100)
    queue.add(early)
    queue.add(late)
    while not queue.preemptions:
        compute(queue)
    assert late.pages == []
    assert early.pages
    while len(early.tokens) < early.limit:
        compute(queue)
    queue.remove(early)
    assert compute(queue) == [(1, 16, len(late.tokens) - 1)] or late.pages


@pytest.mark.parametrize(("page_size", "kept"), [(PAGE, False), (2 * PAGE, True)])
def test_cached_pages_make_way_for_a_run_only_where_it_is_read_faster(page_size: int, kept: bool) -> None:
    table = PageTable(9, page_size)
    cache = PrefixCache(table)
    queue = Scheduler(table, cache, Limits(8, 400))
    for number in range(3):  # a page of each prompt stays, with two free ones behind it
        queue.add(sequence(page_size, new=page_size + 1, first=100 * number))
    compute(queue)
    for each in tuple(queue):
        queue.remove(each)
    assert (len(cache), table.free) == (3, 6)
    queue.add(sequence(2 * page_size, new=2 * page_size, first=900))
    compute(queue)
    assert (len(cache) == 3 + 2) == kept


def test_answer_of_one_that_was_preempted_is_computed_again_in_parts() -> None:
    """It came whole, and everybody who decoded waited for it."""
    queue = scheduler(batch_tokens=32)
    early, late = sequence(1, new=200), sequence(20, new=100, first=100)
    queue.add(early)
    queue.add(late)
    while len(late.tokens) < 100:
        compute(queue)
    queue._preempt(late)
    parts = [compute(queue) for _ in range(4)]
    # The page of its prompt that is whole was kept.
    assert [part[1] for part in parts] == [(1, 16, 35), (1, 35, 66), (1, 66, 97), (1, 97, 100)]
    assert {part[0][0] for part in parts} == {0}
