"""How much dynamic modulation changes each token of a text: one pass over all of it, beside the serving
model, so that decoding does not know of it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from npt_core.bank import PlasticLayer
from npt_core.consolidation.states import plastic
from npt_core.layers import NPTMLP
from npt_core.model import NPTForCausalLM


def modulates(model: NPTForCausalLM) -> bool:
    """Whether any layer has an adapter."""
    return any(layer.mlp.adapter is not None for layer in model.model.layers)


@torch.no_grad()
def modulation_strengths(
    model: NPTForCausalLM,
    layers: Sequence[PlasticLayer | None],
    ids: Sequence[int],
    weights_version: int,
    modulation_scale: float | None = None,
) -> list[float]:
    """For each of `ids` the mean, over the layers with an adapter, of the share by which modulation changes
    the gate (`NPTMLP.modulation_strength`), where the model reads `layers` of the bank at a version.

    Raises:
        ValueError: no layer has an adapter.
    """
    if not modulates(model):
        raise ValueError("a model without adapters modulates nothing")
    found: list[Tensor] = []

    def measure(mlp: NPTMLP, inputs: tuple[Tensor, Tensor, int | None, float | None]) -> None:
        found.append(mlp.modulation_strength(*inputs)[0].float().cpu())

    mlps = [layer.mlp for layer in model.model.layers if layer.mlp.adapter is not None]
    handles = [mlp.register_forward_pre_hook(measure) for mlp in mlps]
    try:
        with plastic(model, layers):
            model.model(
                input_ids=torch.tensor([list(ids)], device=model.device),
                use_cache=False,
                weights_version=weights_version,
                modulation_scale=modulation_scale,
            )
    finally:
        for handle in handles:
            handle.remove()
    means: list[float] = torch.stack(found).mean(0).tolist()
    return means
