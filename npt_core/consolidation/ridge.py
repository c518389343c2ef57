"""Writing into `down_proj` itself: joint ridge over columns, and folding.

    Delta = T W K^T (K W K^T + M)^-1,   M = lambda C0 + mu I

with keys `K [d_ffn, n]`, values `T [d, n]`, and `C0 = E[z z^T]` of ordinary text. By the
push-through identity this equals `T (W^-1 + K^T M^-1 K)^-1 K^T M^-1`: the form with few columns is
solved for one fact, the form of size d_ffn for a fold. Everything is float64 in the order of fact ids,
so the same facts give the same bytes in any order.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from npt_core.bank import Columns, Factors, FactWeights, folded
from npt_core.consolidation.calibration import Calibration
from npt_core.model import NPTForCausalLM

MU = 1e-6
"""Share of the mean diagonal of `C0` that keeps `M` well conditioned."""


def regulariser(second_moment: Tensor, strength: float) -> Tensor:
    """`M` `[d_ffn, d_ffn]` in float64."""
    moment = second_moment.double()
    moment = (moment + moment.T) / 2
    eye = torch.eye(len(moment), dtype=torch.float64)
    return strength * (moment + 1e-3 * moment.diagonal().mean() * eye) + MU * eye


def ridge_factors(columns: Columns, second_moment: Tensor, strength: float) -> Factors:
    """One fact's columns as rank-n factors of `down_proj`."""
    keys, values = columns.inputs.double().T, columns.values.double().T
    weighted = torch.linalg.solve(regulariser(second_moment, strength), keys)  # M^-1 K
    system = torch.eye(keys.shape[1], dtype=torch.float64) + keys.T @ weighted
    left = torch.linalg.solve(system.T, values.T)  # (T S^-1)^T
    return Factors(left.float(), weighted.T.float())


def ridge_weights(weights: FactWeights, calibration: Calibration, strength: float) -> FactWeights:
    """The fact's columns turned into `down_proj` factors, layer by layer."""
    return FactWeights(
        factors={
            (i, "down_proj"): ridge_factors(c, calibration.layers[i].second_moment, strength)
            for i, c in weights.columns.items()
        }
    )


def fold(
    facts: Mapping[str, FactWeights],
    calibration: Calibration,
    strength: float | None = None,
    units: int | None = None,
) -> dict[int, Tensor]:
    """By layer, `Delta` `[d, d_ffn]` (float64) that writes all `facts` into `down_proj` at once.

    With `units` it reads that many of the `d_ffn` hidden units alone, evenly spread.
    """
    chosen = calibration.config.fold_lambda if strength is None else strength
    deltas: dict[int, Tensor] = {}
    for index, statistics in calibration.layers.items():
        parts = [c for name in sorted(facts) if (c := facts[name].columns.get(index)) is not None]
        if not parts:
            continue
        keys = torch.cat([c.inputs for c in parts]).double()
        values = torch.cat([c.values for c in parts]).double()
        read = torch.linspace(0, keys.shape[1] - 1, units or keys.shape[1]).round().long()
        keys, moment = keys[:, read], statistics.second_moment[read][:, read]
        solved = torch.linalg.solve(keys.T @ keys + regulariser(moment, chosen), keys.T @ values)
        deltas[index] = values.new_zeros(values.shape[1], len(statistics.second_moment))
        deltas[index][:, read] = solved.T
    return deltas


def predicted_drift(deltas: Mapping[int, Tensor], calibration: Calibration) -> float:
    """`tr(Delta C0 Delta^T) / E|W z|^2`, the mean over layers: how much ordinary outputs move."""
    if not deltas:
        return 0.0
    ratios = [
        float(((d @ calibration.layers[i].second_moment.double()) * d).sum())
        / calibration.layers[i].output_energy
        for i, d in deltas.items()
    ]
    return sum(ratios) / len(ratios)


@torch.no_grad()
def apply_fold(model: NPTForCausalLM, deltas: Mapping[int, Tensor], base: Mapping[int, Tensor]) -> None:
    """Sets `down_proj` of each layer to `base + Delta`, rounded once; `base` is the immutable
    original.
    """
    for index, weight in base.items():
        delta = deltas.get(index)
        target = model.model.layers[index].mlp.down_proj.weight
        target.copy_(weight if delta is None else folded(weight, delta))
