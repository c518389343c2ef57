from __future__ import annotations

import torch

from npt_core.bank import Columns, FactWeights
from npt_core.consolidation.ridge import regulariser
from npt_core.evaluation.folding import Folder, compressed, other_layers
from tests.npt_core.evaluation.bench import LAYER, tiny_runtime

CALIBRATION = tiny_runtime().consolidator.calibration
FACTOR = torch.linalg.cholesky(regulariser(CALIBRATION.layers[LAYER].second_moment, 30.0))


def columns(count: int, rank: int) -> Columns:
    """`count` columns whose keys and values together span `rank` dimensions."""
    torch.manual_seed(count)
    mix = torch.randn(count, rank)
    keys, values = mix @ torch.randn(rank, 48), mix @ torch.randn(rank, 32)
    return Columns(torch.randn(count, 16), values, torch.ones(count), keys)


def fold_of(found: Columns, rank: int | None = None) -> torch.Tensor:
    return Folder(CALIBRATION, rank, 30.0).deltas({"fact": FactWeights({LAYER: found})})[LAYER]


def test_compression_loses_nothing_that_has_low_rank() -> None:
    found = columns(9, 3)
    assert len(compressed(found, 3, FACTOR).inputs) == 3
    assert torch.allclose(fold_of(found, 3), fold_of(found), rtol=1e-3, atol=1e-5)


def test_compression_keeps_the_most_of_what_has_more() -> None:
    found = columns(9, 9)
    errors = [float((fold_of(found, r) - fold_of(found)).norm()) for r in (1, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.5 * errors[0]


def test_fewer_columns_than_the_rank_stay_as_they_are() -> None:
    found = columns(2, 2)
    assert compressed(found, 4, FACTOR) is found


def test_other_layers_are_the_last_measured_ones() -> None:
    assert other_layers((5,), (3, 4, 5)) == [(4, 5), (3, 4, 5)]
    assert other_layers((3, 4, 5), {5: 0, 3: 0, 4: 0}) == [(5,), (4, 5)]
    assert other_layers((3,), (3,)) == []
