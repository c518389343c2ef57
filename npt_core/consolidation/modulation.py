"""The original rule as a strategy: the modulation at one token becomes a rank-one update of
`gate_proj`.
"""

import torch

from npt_core.bank import Factors, FactWeights
from npt_core.config import LayerSpec, ModulationType
from npt_core.consolidation.errors import InvalidRequest
from npt_core.consolidation.request import PRESETS, WriteRequest
from npt_core.model import NPTForCausalLM
from npt_core.permanent import consolidate_modulation
from npt_core.prompts import PromptTemplate


def checked_ids(template: PromptTemplate, request: WriteRequest) -> list[int]:
    """The ids of the fact. Raises InvalidRequest for a `token_idx` outside them."""
    ids = template.encode(template.with_context("", [request.fact]).rstrip("\n"))
    if not -len(ids) <= request.token_idx < len(ids):
        raise InvalidRequest("token_idx", f"{request.token_idx} is outside the {len(ids)} tokens")
    return ids


def modulation_weights(model: NPTForCausalLM, template: PromptTemplate, request: WriteRequest) -> FactWeights:
    """`alpha [(W_g n) * mult + add] n^T / |n|^2` at `token_idx` of the fact, in every chosen layer.

    Raises InvalidRequest for a token outside the fact, or layers without an adapter.
    """
    part: ModulationType = "both" if request.preset is None else PRESETS[request.preset].modulation_type
    ids = torch.tensor([checked_ids(template, request)], device=model.device)
    layers: LayerSpec = "all" if request.layers is None else request.layers
    try:
        made = consolidate_modulation(model, ids, layers, request.token_idx, request.strength, False, part)
    except ValueError as error:
        raise InvalidRequest("layers", str(error)) from error
    return FactWeights(
        factors={
            (index, "gate_proj"): Factors(update.left[None].float().cpu(), update.right[None].float().cpu())
            for index, update in made.factors.items()
        }
    )
