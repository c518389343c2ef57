"""Which stored facts answer what a new one answers: they contradict it, or say the same.

Keys alone do not tell resembling names apart (the CEO of MedCorp asks at a cosine of 0.95 of TechCorp's
key), so the stored sentence must also name what the new one is about.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from npt_core.bank import Match, matched
from npt_core.consolidation import bare, words
from service.commands import Contradiction, NewFact, OnConflict
from service.ledger import Fact
from service.runtime import Consolidated

MOST = 0.5
"""Share of a fact's questions on which the columns of another fire if it is about the same. Measured on
the reference model: 0.86 or more where it is, 0 where the relation is another."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Stored facts that answer the same questions: `contradicted` ones otherwise, `restated` ones alike."""

    contradicted: tuple[str, ...] = ()
    restated: tuple[str, ...] = ()


def overlap(
    fresh: Consolidated,
    matches: Sequence[Match],
    facts: Callable[[Sequence[str]], Mapping[str, Fact]],
) -> Overlap:
    """What `fresh` has in common with stored facts, given how they match its questions."""
    near = [match.fact for match in matches if _mostly(match, fresh)]
    stored = facts(near) if near else {}
    about = {id_: fact for id_, fact in stored.items() if _names(fact.request["fact"], fresh)}
    alike = {id_ for id_, fact in about.items() if _same(fresh, fact.report.get("answer"))}
    return Overlap(tuple(sorted(about.keys() - alike)), tuple(sorted(alike)))


def disagreeing(fresh: Sequence[Consolidated], sentences: Sequence[str]) -> tuple[int, int] | None:
    """The first two facts of a batch that answer the same questions differently, by index."""
    for second, later in enumerate(fresh):
        earlier = {str(first): each.weights for first, each in enumerate(fresh[:second])}
        for match in sorted(matched(earlier, later.asked), key=lambda m: int(m.fact)):
            first = int(match.fact)
            if (
                _mostly(match, later)
                and _names(sentences[first], later)
                and not _same(later, fresh[first].report.answer)
            ):
                return first, second
    return None


def _mostly(match: Match, fresh: Consolidated) -> bool:
    count = len(fresh.asked[match.layer])
    return count > 0 and len(match.rows) >= MOST * count


def _names(sentence: str, fresh: Consolidated) -> bool:
    return fresh.subject <= words(sentence)


def _same(fresh: Consolidated, answer: str | None) -> bool:
    """Where an answer is missing nothing is contradicted."""
    given = fresh.report.answer
    return given is None or answer is None or bare(given) == bare(answer)


def superseded(facts: Sequence[NewFact], overlaps: Sequence[Overlap]) -> tuple[str, ...]:
    """The stored facts that die of new ones. Raises `Contradiction` where they may not."""
    dead: set[str] = set()
    for new, found in zip(facts, overlaps, strict=True):
        if new.on_conflict is OnConflict.ALLOW:
            continue
        if found.contradicted and new.on_conflict is OnConflict.REJECT:
            raise Contradiction(found.contradicted)
        dead.update(found.contradicted)
    return tuple(sorted(dead))


def report_of(fresh: Consolidated, found: Overlap) -> dict[str, Any]:
    """What was measured, and which stored facts say the same."""
    return fresh.report.as_dict() | {"restates": list(found.restated)}
