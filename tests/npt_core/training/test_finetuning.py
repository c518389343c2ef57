from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
import torch

from npt_core.convert import load_model
from npt_core.training.finetuning import FINETUNING_PRESETS, FinetuningConfig, finetune
from tests.npt_core.tiny import new_npt, tokenizer


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    folder = tmp_path / "base"
    new_npt(0).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def config_of(base: Path, preset: str, data: Path | None = None) -> FinetuningConfig:
    return FinetuningConfig(
        base,
        base.parent / preset,
        preset,
        steps=2,
        batch=2,
        length=24,
        data=data,
        mixed_precision="no",
        compile=False,
    )


@pytest.mark.parametrize("preset", ["factual_recall", "reasoning"])
def test_a_preset_trains_every_weight_and_saves_what_it_trained(base: Path, preset: str) -> None:
    tuned = finetune(config_of(base, preset)).state_dict()
    before = load_model(base).state_dict()
    saved = load_model(base.parent / preset / "model").state_dict()
    assert all(torch.equal(w.float(), saved[name].float()) for name, w in tuned.items())
    moved = [name for name, w in tuned.items() if not torch.equal(w.float(), before[name].float())]
    assert len(moved) > len(tuned) // 2


def test_creative_needs_natural_text_and_takes_it(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs natural text"):
        finetune(config_of(base, "creative"))
    with lzma.open(tmp_path / "wiki-leads.jsonl.xz", "wt", encoding="utf-8") as lines:
        lines.write(json.dumps({"text": "The river rises in the hills and flows north. " * 9}) + "\n")
    finetune(config_of(base, "creative", tmp_path))
    assert (base.parent / "creative" / "model" / "config.json").exists()


def test_an_unknown_preset_is_refused_by_name(base: Path) -> None:
    with pytest.raises(ValueError, match="factual_recall, reasoning, creative, not 'poetic'"):
        finetune(config_of(base, "poetic"))
    assert list(FINETUNING_PRESETS) == ["factual_recall", "reasoning", "creative"]
