import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from npt_core.engine.errors import EngineClosed, QueueFull
from npt_core.engine.waiting_line import WaitingLine

WORKERS, CAPACITY = 2, 3


class LineAgainstAList(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.line: WaitingLine[int] = WaitingLine(WORKERS, CAPACITY)
        self.expected: list[int] = []
        self.running = 0
        self.next = 0

    @rule(count=st.integers(1, 4))
    def put(self, count: int) -> None:
        jobs = list(range(self.next, self.next + count))
        fits = len(self.expected) + count <= CAPACITY + WORKERS - self.running
        if fits:
            self.line.put(jobs)
            self.expected += jobs
            self.next += count
        else:
            with pytest.raises(QueueFull):
                self.line.put(jobs)

    @precondition(lambda self: self.expected and self.running < WORKERS)
    @rule()
    def take(self) -> None:
        assert self.line.take() == self.expected.pop(0)
        self.running += 1

    @precondition(lambda self: self.running)
    @rule()
    def done(self) -> None:
        self.line.done()
        self.running -= 1

    @invariant()
    def counts_agree(self) -> None:
        assert (self.line.waiting, self.line.running) == (len(self.expected), self.running)


TestLineAgainstAList = LineAgainstAList.TestCase


def test_close_returns_what_waited_and_wakes_the_workers() -> None:
    line: WaitingLine[str] = WaitingLine(1, 1)
    line.put(["a", "b"])
    assert line.take() == "a"
    assert line.close() == ["b"]
    assert line.take() is None
    with pytest.raises(EngineClosed):
        line.put(["c"])


@pytest.mark.parametrize(("workers", "capacity"), [(0, 1), (1, -1)])
def test_senseless_sizes_are_refused(workers: int, capacity: int) -> None:
    with pytest.raises(ValueError, match="at least"):
        WaitingLine(workers, capacity)
