from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from npt_core import loading
from npt_core.consolidation.calibration import TENSOR_FILE
from npt_core.loading import fingerprint_of, load_runtime
from npt_core.training.plasticity import CalibrationSizes
from tests.npt_core.tiny import calibrated, new_npt, plain_template, tokenizer


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without a calibration of its own, measured quickly at first use."""
    monkeypatch.setattr(loading, "FIRST_USE", CalibrationSizes(facts=4, documents=4, locality=8))
    folder = tmp_path / "checkpoint"
    new_npt().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def test_a_calibration_of_the_first_use_is_part_of_the_fingerprint(checkpoint: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first, again = (load_runtime(checkpoint, cache=cache).fingerprint for _ in range(2))
    assert first == again != fingerprint_of(checkpoint)
    (stored,) = cache.glob(f"*/{TENSOR_FILE}")
    tensors = load_file(stored)
    save_file({name: tensor + (name.endswith("mean")) for name, tensor in tensors.items()}, stored)
    assert load_runtime(checkpoint, cache=cache).fingerprint != first


def test_a_calibration_of_its_own_needs_no_cache(checkpoint: Path, tmp_path: Path) -> None:
    calibrated(new_npt(), plain_template())[0].save(checkpoint)
    runtime = load_runtime(checkpoint, cache=tmp_path / "cache")
    assert runtime.fingerprint == fingerprint_of(checkpoint)
    assert not (tmp_path / "cache").exists()


def test_what_is_served_is_not_trained(checkpoint: Path) -> None:
    """Gradients of columns' values would otherwise keep the activations of all layers: 300 MB."""
    assert not any(parameter.requires_grad for parameter in load_runtime(checkpoint).model.parameters())
