"""The short form of `python -m torture load`; and that it sees counts that differ."""

from pathlib import Path

import pytest

from torture import load
from torture.load import Outcome, Tally


@pytest.mark.timeout(600)  # seconds alone, minutes beside other work
def test_metrics_are_what_clients_count(tmp_path: Path) -> None:
    outcome = load.run(tmp_path, seconds=6.0, clients=8, writers=2)
    assert outcome.problems == []
    assert outcome.compared > 10
    assert min(outcome.requests, outcome.prompt_tokens, outcome.completion_tokens) > 0


def test_count_of_one_side_alone_is_a_problem() -> None:
    tally = Tally({"/generate": {"post": {"responses": {"200": {}}}}})
    tally.answered("POST", "/generate", 200, "")
    tally.generated({"prompt_tokens": 3, "completion_tokens": 2})
    told = {name: float(count) for name, count in tally.counts.items()}
    for wrong in (
        {},
        told | {("npt_prompt_tokens_total",): 4.0},
        told | {("npt_facts_total", "published"): 1.0},
    ):
        outcome = Outcome()
        load._compare(outcome, tally, wrong)
        assert any(problem.startswith("counted: ") for problem in outcome.problems)
    right = Outcome()
    load._compare(right, tally, told)
    assert (right.problems, right.requests) == ([], 1)


def test_answer_that_is_not_documented_is_a_problem() -> None:
    tally = Tally({"/generate": {"post": {"responses": {"200": {}}}}})
    tally.answered("POST", "/generate", 418, "a teapot")
    assert tally.problems == ["undocumented: POST /generate: 418 a teapot"]
