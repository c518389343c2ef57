"""What is compiled for a GPU is one graph each, and computes what is written."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from npt_core.engine.kernels import Kernels
from npt_core.engine.weights import Norm, stacked
from npt_core.layers import Modulation

ROWS, D, D_FFN = 5, 16, 24


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def norm() -> Norm:
    module = nn.Module()
    module.weight = nn.Parameter(1 + noise(9, D) / 10)
    module.variance_epsilon = 1e-5  # type: ignore[assignment]
    return Norm(module)


@pytest.fixture(scope="module")
def compiled() -> Kernels:
    """Without a compiler at the end: what breaks a graph is found all the same."""
    return Kernels.compiled(nn.SiLU(), backend="aot_eager")


@torch.inference_mode()
def test_compiled_operations_equal_plain_ones(compiled: Kernels) -> None:
    plain = Kernels.plain(nn.SiLU())
    x, y = noise(1, ROWS, D), noise(2, ROWS, D)
    for found, wanted in zip(compiled.added(x, y, norm()), plain.added(x, y, norm()), strict=True):
        torch.testing.assert_close(found, wanted)
    heads, cos, sin = noise(3, ROWS, 3, 8), noise(4, ROWS, 1, 8), noise(5, ROWS, 1, 8)
    torch.testing.assert_close(compiled.rotated(heads, cos, sin), plain.rotated(heads, cos, sin))
    g, up = noise(6, ROWS, D_FFN), noise(7, ROWS, D_FFN)
    add, mult, scale = noise(8, ROWS, D_FFN), noise(9, ROWS, D_FFN), noise(10, ROWS, 1)
    for modulation in (None, Modulation(add, None), Modulation(None, mult), Modulation(add, mult)):
        for each in (None, scale):
            wanted = plain.gated(g, up, modulation, each)
            torch.testing.assert_close(compiled.gated(g, up, modulation, each), wanted)


@torch.no_grad()
def test_stacked_weights_are_parts_of_one_matrix() -> None:
    linears = [nn.Linear(4, 3), nn.Linear(4, 5), nn.Linear(4, 2)]
    before = [linear.weight.clone() for linear in linears]
    whole = stacked(linears)
    assert torch.equal(whole, torch.cat(before))
    assert all(torch.equal(linear.weight, old) for linear, old in zip(linears, before, strict=True))
    linears[1].weight.mul_(2)
    assert torch.equal(whole[3:8], 2 * before[1])
    assert stacked(linears[:1]).data_ptr() == linears[0].weight.data_ptr()
