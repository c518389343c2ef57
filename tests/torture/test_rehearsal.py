"""The short form of `make rehearsal`; and that its clients see what must not be."""

import time
from pathlib import Path

import httpx2
import pytest

from service import problems
from tests.service.postgres import postgres_or_skip
from torture import rehearsal
from torture.clients import Journal, Taught

FACT = Taught(3, "fact_1", "key", "What is thing a-?", "Blue")


@pytest.mark.timeout(900)  # half a minute alone, minutes beside other work
def test_clients_notice_nothing_of_what_a_cluster_does_to_its_replicas(tmp_path: Path) -> None:
    server = postgres_or_skip()
    try:
        outcome = rehearsal.run(tmp_path, server=server, readers=3)
    finally:
        server.remove()
    assert outcome.problems == []
    assert (outcome.drained, outcome.killed, outcome.refused_to_start) == (6, 2, 1)
    assert 0 < outcome.acknowledged == outcome.moved
    assert outcome.recalled == (outcome.moved, outcome.moved)
    assert min(outcome.answers, outcome.streams, outcome.pinned, outcome.compared) > 0


def test_two_texts_for_one_version_are_seen() -> None:
    journal = Journal(exact=False)
    for text in (" Blue.", " Blue.", " Green."):
        journal.said(FACT, 3, text, 0.1)
    assert [problem.partition(":")[0] for problem in journal.problems] == ["mixed"]


def test_version_that_knows_what_came_later_is_seen() -> None:
    journal = Journal()
    journal.said(FACT, 3, " Blue.", 0.1)
    journal.said(FACT, 2, " I don't know.", 0.1)
    assert journal.problems == []
    journal.said(FACT, 1, " Blue.", 0.1)
    assert [problem.partition(":")[0] for problem in journal.problems] == ["mixed"]


def test_only_a_kill_may_cut_a_request() -> None:
    journal = Journal()
    begin = time.monotonic()
    journal.without_answer(begin, "reader")
    assert (journal.cut, len(journal.problems)) == (0, 1)
    journal.killed()
    journal.without_answer(begin, "reader")
    assert (journal.cut, len(journal.problems)) == (1, 1)


@pytest.mark.parametrize(
    ("status", "kind", "wrong"),
    [
        (503, problems.OVERLOADED.type, False),
        (503, problems.FACT_NOT_FOUND.type, True),
        (500, problems.INTERNAL.type, True),
        (502, "about:blank", True),
    ],
)
def test_refusal_that_is_not_documented_is_seen(status: int, kind: str, wrong: bool) -> None:
    journal = Journal()
    journal.refusal(httpx2.Response(status, json={"type": kind}))
    assert bool(journal.problems) is wrong
    assert sum(journal.refused.values()) == 1
