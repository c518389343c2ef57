"""The shipped model through the runner of a GPU, in bfloat16, on a CPU; see `tests.npt_core.engine.eager`."""

from __future__ import annotations

import pytest

from npt_core.consolidation import WriteRequest
from npt_core.engine import Engine, GenerationRequest
from npt_core.loading import load_runtime
from tests.npt_core.engine.eager import on_cpu
from tests.npt_core.engine.test_runner import heard
from tests.reference.conftest import REFERENCE

FACT, QUESTION = "The CEO of TechCorp is Dr. Sarah Chen.", "Who leads TechCorp?"


def test_a_fact_is_learned_and_recalled_beside_the_version_before(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = load_runtime(REFERENCE, dtype="bfloat16")
    runner, _, captures = on_cpu(runtime.model, monkeypatch, 8, exact=False)
    engine = Engine(runner, runtime.bank, runtime.template.eos_token_ids)
    made = engine.execute(lambda: runtime.consolidator.consolidate(WriteRequest(FACT)))
    engine.execute(lambda: runtime.bank.publish(1, {"fact": made.weights}), urgent=True)
    ids = tuple(runtime.template.encode(QUESTION))
    streams = [engine.submit(GenerationRequest(ids, weights_version=version)) for version in (1, 0)]
    answers = [runtime.template.decode(heard(stream)) for stream in streams]
    engine.close()
    assert answers == [" Dr. Sarah Chen.", " I don't know."]
    assert captures.replays > 0
