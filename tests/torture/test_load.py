"""The short form of `python -m torture load`; and that it sees counts that differ."""

from pathlib import Path

import pytest

from torture import load
from torture.load import Outcome, Tally


@pytest.mark.timeout(600)  # seconds alone, minutes beside other work
def test_metrics_are_what_clients_count(tmp_path: Path) -> None:
    out = tmp_path / "memory.csv"
    outcome = load.run(tmp_path, seconds=6.0, clients=8, writers=2, out=out)
    assert outcome.problems == []
    header, *samples = out.read_text().splitlines()
    assert header == "seconds,mib"
    assert len(samples) >= 3
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


@pytest.mark.parametrize(
    ("minutes", "mib_a_minute", "leaks"),
    [(10, 2.5, False), (10, 3.5, True), (20, 3.5, True), (4, 7.0, False), (4, 8.0, True), (1, 60.0, False)],
)
def test_memory_that_grows_in_the_second_half_is_a_problem(
    minutes: int, mib_a_minute: float, leaks: bool
) -> None:
    half = 30.0 * minutes
    flat = [(0.0, 700.0), (half / 2, 895.0)]  # caches fill: no leak, however fast
    late = [(half + 2 * i, 900.0 + mib_a_minute * i / 30 + (-1) ** i) for i in range(int(half / 2) + 1)]
    outcome = Outcome()
    load._weigh(outcome, flat + late)
    assert outcome.mib_a_minute == pytest.approx(mib_a_minute, rel=0.05)
    assert [each.partition(":")[0] for each in outcome.problems] == ["memory"] * leaks


@pytest.mark.parametrize(("mib", "leaks"), [(20.0, False), (70.0, True)])
def test_what_work_that_is_rare_leaves_is_bounded_and_no_slope(mib: float, leaks: bool) -> None:
    samples = [(2.0 * i, 880.0 + (-1) ** i + (mib if i > 260 else 0.0)) for i in range(301)]
    outcome = Outcome()
    load._weigh(outcome, samples)
    assert outcome.mib_a_minute < load.GROWS_MIB_A_MINUTE
    assert [each.partition(":")[0] for each in outcome.problems] == ["memory"] * leaks
