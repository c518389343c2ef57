from types import SimpleNamespace

from npt_core.bank import Bank
from npt_core.bench.load import NEW_TOKENS, answered, measure, prompts, running
from npt_core.engine import Engine
from tests.npt_core.engine.fakes import VOCAB, CountingRunner
from tests.npt_core.tiny import new_npt


def test_every_stream_is_measured() -> None:
    engine = Engine(CountingRunner(max_positions=200), SimpleNamespace(version=0), ())
    figures = measure(engine, 3, VOCAB, 0.0)
    engine.close()
    assert figures.streams == 3
    assert figures.tokens_per_s > 0
    assert figures.inter_token_p50_s is not None
    assert figures.inter_token_p99_s is not None
    assert figures.inter_token_p50_s <= figures.inter_token_p99_s


def test_every_answer_has_all_its_tokens() -> None:
    model = new_npt()
    with running(model, Bank(model, {}), 70) as engine:
        answers = answered(engine, prompts(70, 400), new_tokens=3)
        assert engine.preemptions == 0
    assert [len(answer.tokens) for answer in answers] == [3] * 70


def test_prompts_are_the_same_again_and_differ_from_each_other() -> None:
    assert prompts(4, 50) == prompts(4, 50)
    assert len(set(prompts(4, 50))) == 4
    assert NEW_TOKENS > 1
