import pytest

from npt_core.bench.figures import Figures, Timeline, rounds


def test_figures_are_over_all_answers_and_all_gaps() -> None:
    answers = [Timeline(0.0, [1.0, 1.5, 2.0]), Timeline(1.0, [3.0, 3.1])]
    figures = Figures.of(2, answers, wall_s=4.0)
    assert figures.tokens_per_s == 5 / 4
    assert (figures.first_token_p50_s, figures.first_token_p99_s) == (1.0, 2.0)
    assert figures.inter_token_p50_s == pytest.approx(0.5)
    assert figures.inter_token_p95_s == pytest.approx(0.5)


def test_tokens_can_be_counted_by_who_sent_them() -> None:
    assert Figures.of(1, [Timeline(0.0, [1.0])], wall_s=2.0, tokens=8).tokens_per_s == 4


def test_load_that_nobody_answered_has_no_latencies() -> None:
    figures = Figures.of(3, [], wall_s=1.0)
    assert figures.tokens_per_s == 0
    assert figures.first_token_p50_s is None
    assert figures.inter_token_p99_s is None


def test_first_round_warms_up_and_is_not_counted() -> None:
    seeds = []

    def answered(seed: int) -> list[Timeline]:
        seeds.append(seed)
        return [Timeline(0.0, [1.0 + seed])]

    assert rounds(1, 0.0, answered).first_token_p50_s == 2.0
    assert seeds == [0, 1]
