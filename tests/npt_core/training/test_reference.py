"""The whole of `npt train reference`, with everything but the number of layers made small."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from npt_core.consolidation import PlasticityConfig
from npt_core.generation import Decoding, generate
from npt_core.loading import load_runtime
from npt_core.training import reference
from npt_core.training.plasticity import CalibrationSizes
from npt_core.training.pretraining import teacher_config
from npt_core.training.reference import ReferenceConfig, assemble

PLASTICITY = PlasticityConfig(layers=(5,), key_width=8)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(reference, "TOKENIZER_DOCUMENTS", 300)
    monkeypatch.setattr(reference, "new_teacher", narrow_teacher)


def narrow_teacher(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The optimizer computes in bfloat16, which takes minutes where the processor cannot."""
    config = teacher_config(tokenizer)
    config.update(
        {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 2, "num_key_value_heads": 2}
    )
    config.head_dim = 32
    return LlamaForCausalLM(config)


def config_of(out: Path) -> ReferenceConfig:
    return ReferenceConfig(
        out=out,
        teacher_steps=2,
        equivalence_steps=2,
        batch=2,
        length=48,
        adapter_rank=4,
        calibration=CalibrationSizes(facts=4, documents=4, locality=8),
        mixed_precision="no",
        compile=False,
    )


def test_a_run_makes_a_checkpoint_that_is_served_and_can_learn(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run")
    folder = tmp_path / "model"
    assemble(config, PLASTICITY, folder)
    runtime = load_runtime(folder)
    assert runtime.consolidator.config == PLASTICITY
    assert sorted(runtime.consolidator.calibration.layers) == [4, 5]
    stored = load_file(folder / "model.safetensors")
    assert {w.dtype for w in stored.values()} == {torch.bfloat16}
    prompt = runtime.template.encode("Who leads Vorland?")
    assert len(generate(runtime.model, [prompt], Decoding(3, ()))[0]) == 3
    card = (folder / "README.md").read_text()
    assert "--teacher-steps 2 --equivalence-steps 2" in card
    assert f"{sum(w.numel() for w in stored.values()):,}" in card
    assert "$" not in card
    terms = json.loads((tmp_path / "run" / "equivalence" / "log.jsonl").read_text().splitlines()[-1])
    assert {"ce", "hidden", "address", "unknown"} <= terms.keys()


def test_a_second_run_goes_on_where_the_first_ended(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run")
    assemble(config, PLASTICITY, tmp_path / "first")
    assemble(replace(config, teacher_steps=50, equivalence_steps=50), PLASTICITY, tmp_path / "second")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(w, second[name]) for name, w in first.items())
