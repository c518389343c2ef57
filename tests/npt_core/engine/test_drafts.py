"""Drafts make answers come sooner, and change nothing about them."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from npt_core.engine import Engine, EngineConfig, Event, GenerationRequest, Runner, SamplingParams
from npt_core.engine.engine import DraftCount
from npt_core.engine.prompt_lookup import PromptLookup
from tests.npt_core.engine.test_runner import Base, wide
from tests.npt_core.tiny import shared_npt

PROMPTS = [(7, 8, 9) * 4, (5,), tuple(range(3, 40)) * 2, (4, 4)]


def naive(tokens: Sequence[int]) -> int | None:
    for length in (2, 1):
        for end in range(len(tokens) - 1, length - 1, -1):
            if list(tokens[end - length : end]) == list(tokens[-length:]):
                return tokens[end]
    return None


@given(st.lists(st.integers(0, 3), max_size=40), st.data())
def test_a_draft_is_what_lately_followed_the_last_tokens(tokens: list[int], data: st.DataObject) -> None:
    lookup = PromptLookup()
    for length in range(len(tokens) + 1):
        most, hits = data.draw(st.integers(0, 4)), data.draw(st.integers(0, 4))
        lookup.tell(hits)
        drafted = lookup.draft(tokens[:length], most)
        assert drafted[:1] == [token for token in [naive(tokens[:length])] if token is not None and most]
        assert len(drafted) <= min(most, hits + 1)
        known = {(a, b) for a, b in pairwise(tokens[:length])}
        assert set(pairwise([*tokens[:length][-1:], *drafted])) <= known


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(60, logprobs=2),
        SamplingParams(60, temperature=0.01, seed=3, logprobs=0),
        SamplingParams(60, temperature=1.0, seed=3, logprobs=0),
        SamplingParams(60, repetition_penalty=1.1, logprobs=0),
        SamplingParams(3, logprobs=0),
        SamplingParams(1, logprobs=0),
    ],
    ids=["greedy", "cold", "warm", "penalised", "three", "one"],
)
def test_answers_with_drafts_have_the_bits_of_answers_without(params: SamplingParams) -> None:
    plain, none = answers(params, drafts=False)
    drafted, count = answers(params, drafts=True)
    assert drafted == plain
    assert none == DraftCount()
    assert (count.tried > 0) == (params.max_new_tokens > 3)


@pytest.mark.parametrize("params", [SamplingParams(60), SamplingParams(60, temperature=0.01, seed=3)])
def test_drafts_are_accepted(params: SamplingParams) -> None:
    assert answers(params, drafts=True)[1].accepted > 0


def answers(params: SamplingParams, drafts: bool) -> tuple[list[list[Event]], DraftCount]:
    engine = Engine(Runner(wide(), 32), Base(), (11,), EngineConfig(drafts=drafts))
    found = [list(engine.submit(GenerationRequest(prompt, params))) for prompt in PROMPTS]
    engine.close()
    return found, engine.drafts


def test_nobody_drafts_in_company() -> None:
    runner = Runner(shared_npt(), 64)
    engine = Engine(runner, Base(), (), EngineConfig(batch_tokens=64))
    list(engine.submit(GenerationRequest((7, 8, 9) * 4, SamplingParams(40, n=2))))
    assert engine.drafts.tried == 0
    engine.close()
