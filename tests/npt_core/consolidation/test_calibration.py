from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from torch.nn import functional as F

from npt_core.consolidation import Calibration, PlasticityConfig
from npt_core.consolidation.calibration import (
    CONFIG_FILE,
    NEAR_DUPLICATE,
    NOTHING,
    PROMPT_SHARE,
    TENSOR_FILE,
    CalibrationText,
    key_space,
    thinned,
)
from npt_core.consolidation.states import private_copy, run
from tests.npt_core.tiny import calibrated, plain_template, shared_npt


@pytest.fixture(scope="module")
def made() -> tuple[Calibration, CalibrationText]:
    return calibrated(shared_npt(), plain_template(), threshold=0.7)


@pytest.fixture
def calibration(made: tuple[Calibration, CalibrationText]) -> Calibration:
    return made[0]


def test_statistics_are_those_of_the_calibration_text(
    made: tuple[Calibration, CalibrationText],
) -> None:
    calibration, text = made
    model = private_copy(shared_npt())
    states = run(model, text.reference, (0, 1))
    prompts = [prompt.ids for prompt in text.prompts]
    ends_of = run(model, prompts, (0, 1), [[len(ids) - 1] for ids in prompts])
    for index, layer in calibration.layers.items():
        every, ends = states.keys[index], ends_of.keys[index]
        weight = model.model.layers[index].mlp.down_proj.weight
        shares = ((1 - PROMPT_SHARE, every), (PROMPT_SHARE, ends))
        moment = sum((share * z.T @ z / len(z) for share, z in shares), torch.zeros(()))
        torch.testing.assert_close(layer.second_moment, moment, rtol=1e-3, atol=1e-5)
        energy = sum(share * float((z @ weight.T).detach().square().sum(-1).mean()) for share, z in shares)
        assert layer.output_energy == pytest.approx(energy, rel=1e-3)


def test_a_reference_key_stands_for_every_token_of_the_text(
    made: tuple[Calibration, CalibrationText],
) -> None:
    calibration, text = made
    model = private_copy(shared_npt())
    states = run(model, text.reference, (0, 1))
    for index, layer in calibration.layers.items():
        keys = layer.whitening.key(states.keys[index])
        following = torch.cat([torch.tensor([*row[1:], NOTHING]) for row in text.reference])
        other = following[:, None] != layer.following
        nearest = (keys @ layer.reference.T).masked_fill(other, -1.0).max(dim=1).values
        assert nearest.min() >= NEAR_DUPLICATE - 1e-4


@settings(deadline=None)
@given(st.integers(0, 2**30), st.integers(1, 30), st.sampled_from([4, 7, 100]))
def test_thinning_keeps_one_key_of_every_near_duplicate(seed: int, count: int, chunk: int) -> None:
    r = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, 4, generator=r)[torch.randint(0, 5, (count,), generator=r)]
    keys = F.normalize(centres + 0.15 * torch.randn(count, 4, generator=r), dim=-1)
    following = torch.randint(0, 2, (count,), generator=r)
    kept, after = thinned(keys, following, chunk)
    assert all(any(torch.equal(k, key) for key in keys) for k in kept)
    alike = (kept @ kept.T).fill_diagonal_(-1.0).masked_fill(after[:, None] != after, -1.0)
    assert (alike < NEAR_DUPLICATE + 1e-4).all()
    stands_for = (keys @ kept.T).masked_fill(following[:, None] != after, -1.0)
    assert (stands_for.max(dim=1).values >= NEAR_DUPLICATE - 1e-4).all()


def test_every_locality_key_knows_its_prompt(
    made: tuple[Calibration, CalibrationText],
) -> None:
    calibration, text = made
    assert calibration.locality_rows == len(text.locality)
    counts = torch.bincount(calibration.locality_owner).tolist()
    assert counts == [len(row) for row in text.locality]
    states = run(private_copy(shared_npt()), text.locality, (1,))
    layer = calibration.layers[1]
    for owner in range(len(text.locality)):
        z = states.keys[1][states.of(owner)]
        keys = layer.locality[calibration.locality_owner == owner]
        torch.testing.assert_close(keys, layer.whitening.key(z), rtol=1e-3, atol=1e-4)


def test_the_key_space_is_the_same_again(calibration: Calibration) -> None:
    again, _ = calibrated(shared_npt(), plain_template())
    for index, layer in calibration.layers.items():
        assert layer.whitening.projection.shape == (48, 16)
        assert torch.equal(layer.whitening.projection, again.layers[index].whitening.projection)
        assert torch.equal(layer.whitening.mean, again.layers[index].whitening.mean)


def test_the_key_space_tells_facts_apart_and_not_wordings() -> None:
    """Six facts, four wordings each; wordings vary more than facts do, in other directions."""
    r = torch.Generator().manual_seed(0)
    classes = torch.arange(6).repeat(4)
    centres = torch.cat([torch.randn(6, 6, generator=r), torch.zeros(6, 18)], dim=1)
    noise = torch.randn(24, 24, generator=r) * torch.cat([torch.full((6,), 0.1), torch.full((18,), 5)])
    z = centres[classes] + noise + 3.0
    keys = key_space(z, classes, width=5).key(z)
    alike = keys @ keys.T
    same = classes[:, None] == classes[None]
    assert alike[same].min() > alike[~same].max()


def test_a_saved_calibration_is_loaded_unchanged(calibration: Calibration, tmp_path: Path) -> None:
    calibration.save(tmp_path)
    loaded = Calibration.load(tmp_path)
    assert loaded.config == calibration.config
    assert loaded.locality_rows == calibration.locality_rows
    assert torch.equal(loaded.locality_owner, calibration.locality_owner)
    assert loaded.layers.keys() == calibration.layers.keys()
    for index, layer in calibration.layers.items():
        there = loaded.layers[index]
        assert torch.equal(there.whitening.mean, layer.whitening.mean)
        assert torch.equal(there.whitening.projection, layer.whitening.projection)
        # Keys are stored as bytes, moments in half precision.
        torch.testing.assert_close(there.reference, layer.reference, rtol=0, atol=0.5 / 127)
        torch.testing.assert_close(there.locality, layer.locality, rtol=0, atol=0.5 / 127)
        torch.testing.assert_close(there.second_moment, layer.second_moment, rtol=1e-3, atol=1e-6)
        assert there.output_energy == pytest.approx(layer.output_energy, rel=1e-6)


def test_loading_what_was_loaded_changes_no_bit(calibration: Calibration, tmp_path: Path) -> None:
    calibration.save(tmp_path)
    once = Calibration.load(tmp_path)
    (tmp_path / "again").mkdir()
    once.save(tmp_path / "again")
    twice = Calibration.load(tmp_path / "again")
    for index, layer in once.layers.items():
        for name, tensor in layer.tensors().items():
            assert torch.equal(tensor, twice.layers[index].tensors()[name])


def test_parameters_survive_json(tmp_path: Path) -> None:
    config = PlasticityConfig(layers=(2, 5), threshold=0.75, plain_text=False)
    config.save(tmp_path / "p.json")
    assert PlasticityConfig.load(tmp_path / "p.json") == config


def test_an_unknown_parameter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps({"layers": [1], "tau": 0.8}))
    with pytest.raises(TypeError, match="tau"):
        PlasticityConfig.load(tmp_path / "p.json")


def test_damaged_files_are_refused(calibration: Calibration, tmp_path: Path) -> None:
    calibration.save(tmp_path)
    tensors = tmp_path / TENSOR_FILE
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-100])
    with pytest.raises(SafetensorError):
        Calibration.load(tmp_path)
    tensors.write_bytes(whole)
    (tmp_path / CONFIG_FILE).write_text("{")
    with pytest.raises(ValueError, match="Expecting property name"):
        Calibration.load(tmp_path)


def test_other_parameters_keep_the_statistics(calibration: Calibration) -> None:
    changed = calibration.with_config(replace(calibration.config, threshold=0.1))
    assert changed.config.threshold == 0.1
    assert changed.layers is calibration.layers
