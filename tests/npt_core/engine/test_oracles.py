"""The engine against continuous batching by transformers, for every kind of layer."""

import pytest

from npt_core.engine import Engine, EngineConfig, GenerationRequest, Runner, SamplingParams
from tests.npt_core.engine.test_runner import MODELS, Base, heard, prompts
from tests.npt_core.helpers import by_continuous_batching, by_transformers


@pytest.mark.parametrize("name", MODELS)
def test_engine_generate_and_continuous_batching_by_transformers_agree(name: str) -> None:
    model, asked = MODELS[name](), prompts(12)
    engine = Engine(Runner(model, 40), Base(), (), EngineConfig(max_running=8, batch_tokens=64))
    streams = [engine.submit(GenerationRequest(p, SamplingParams(max_new_tokens=9))) for p in asked]
    answers = [heard(stream) for stream in streams]
    engine.close()
    assert answers == by_continuous_batching(model, asked, 9)
    assert answers == [by_transformers(model, prompt, 9) for prompt in asked]
