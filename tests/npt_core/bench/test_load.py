from types import SimpleNamespace

from npt_core.bench.load import NEW_TOKENS, measure, prompts
from npt_core.bench.report import table
from npt_core.engine import Engine
from tests.npt_core.engine.fakes import VOCAB, CountingRunner


def test_every_stream_is_measured() -> None:
    engine = Engine(CountingRunner(max_positions=200), SimpleNamespace(version=0), ())
    figures = measure(engine, 3, VOCAB, 0.0)
    engine.close()
    assert figures.streams == 3
    assert figures.tokens_per_s > 0
    assert figures.inter_token_p50_s is not None
    assert figures.inter_token_p99_s is not None
    assert figures.inter_token_p50_s <= figures.inter_token_p99_s


def test_prompts_are_the_same_again_and_differ_from_each_other() -> None:
    assert prompts(4, 50) == prompts(4, 50)
    assert len(set(prompts(4, 50))) == 4
    assert NEW_TOKENS > 1


def test_peer_that_failed_is_told_in_the_table() -> None:
    text = table({"loads": {"peer": [{"streams": 4, "failed": "no"}]}, "columns": []})
    assert "| peer | 4 | failed: no | | |" in text
