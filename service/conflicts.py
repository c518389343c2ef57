"""Which facts contradict a new one: those whose columns answer its questions, with another answer."""

from collections.abc import Callable, Mapping, Sequence

from service.ledger import Fact
from service.runtime import Bank, Consolidated


def contradicted(
    bank: Bank, fresh: Consolidated, facts: Callable[[Sequence[str]], Mapping[str, Fact]]
) -> tuple[str, ...]:
    """Ids of the facts that the newest version knows and that answer what `fresh` answers, otherwise.

    One that says the same is no contradiction, and one without an answer cannot tell.
    """
    answer = fresh.report.answer
    if not fresh.asked or answer is None:
        return ()
    firing = [match.fact for match in bank.matches(fresh.asked) if match.fires]
    stored = facts(firing) if firing else {}
    return tuple(sorted(i for i, fact in stored.items() if not same(answer, fact.report.get("answer"))))


def disagreeing(fresh: Sequence[Consolidated]) -> tuple[int, int] | None:
    """The first two facts of a batch that contradict each other, by index."""
    for second, later in enumerate(fresh):
        for first, earlier in enumerate(fresh[:second]):
            if not same(later.report.answer, earlier.report.answer) and (
                answers(earlier, later) or answers(later, earlier)
            ):
                return first, second
    return None


def same(one: str | None, other: str | None) -> bool:
    """Whether two answers say the same; where one is missing nothing is contradicted."""
    return one is None or other is None or one.casefold().strip(" .") == other.casefold().strip(" .")


def answers(stored: Consolidated, asked: Consolidated) -> bool:
    """Whether a column of `stored` fires on a question of `asked`."""
    for layer, keys in asked.asked.items():
        columns = stored.weights.columns.get(layer)
        if columns is not None and bool((keys @ columns.keys.T > columns.thresholds).any()):
            return True
    return False
