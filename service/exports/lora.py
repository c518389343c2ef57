"""A version as a LoRA adapter of PEFT: exact for factors and folds; columns it cannot express."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from safetensors.torch import save
from torch import Tensor

from npt_core.bank import Site
from service.commands import NotExportable
from service.exports.contents import Contents
from service.exports.zipped import File
from service.weights_codec import decode

SMALLEST = 1e-7
"""Singular values below this share of the largest are rounding of float32."""

Place = tuple[int, Site]
Pair = tuple[Tensor, Tensor]
"""`B [out, r]` and `A [r, in]`: the update is `B A`."""


def adapter_files(held: Contents, model: str) -> list[File]:
    """The files of an adapter for the checkpoint `model`.

    Raises:
        NotExportable: the version holds columns, or nothing at all.
    """
    number = held.version.version
    columns = [fact.id for fact in held.apart if fact.report["columns"]]
    if columns:
        raise NotExportable(
            f"version {number} holds {len(columns)} facts as columns, such as {columns[0]}; a LoRA adapter "
            "cannot express columns, which fire on some tokens alone: fold them, or export as merged"
        )
    updates = _joined(_pairs(held))
    if not updates:
        raise NotExportable(f"version {number} adds nothing to the checkpoint that an adapter could hold")
    tensors: dict[str, Tensor] = {}
    for place, (left, right) in updates.items():
        tensors[f"base_model.model.{_module(place)}.lora_A.weight"] = right.float().contiguous()
        tensors[f"base_model.model.{_module(place)}.lora_B.weight"] = left.float().contiguous()
    config = json.dumps(
        _config({_module(p): len(right) for p, (_, right) in updates.items()}, model), indent=2
    )
    return [
        ("adapter_config.json", [config.encode()]),
        ("adapter_model.safetensors", [save(tensors, {"format": "pt"})]),
    ]


def _pairs(held: Contents) -> Iterable[tuple[Place, Pair]]:
    for fact in held.apart:
        for place, factors in decode(held.blobs.get(fact.blob)).factors.items():
            yield place, (factors.left.T, factors.right)
    for layer, delta in held.fold.deltas.items():
        yield (layer, "down_proj"), low_rank(delta)


def low_rank(delta: Tensor) -> Pair:
    """The factors of `delta` `[out, in]`, as few as float32 needs."""
    left, values, right = torch.linalg.svd(delta.double(), full_matrices=False)
    rank = int((values > SMALLEST * values[0]).sum()) if len(values) else 0
    root = values[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]


def _joined(pairs: Iterable[tuple[Place, Pair]]) -> dict[Place, Pair]:
    by_place: dict[Place, list[Pair]] = defaultdict(list)
    for place, pair in pairs:
        if len(pair[1]):
            by_place[place].append(pair)
    return {
        place: (torch.cat([b for b, _ in found], dim=1), torch.cat([a for _, a in found]))
        for place, found in sorted(by_place.items())
    }


def _module(place: Place) -> str:
    layer, site = place
    return f"model.layers.{layer}.mlp.{site}"


def _config(ranks: Mapping[str, int], model: str) -> dict[str, object]:
    """With `alpha` equal to the rank the update is scaled by 1, wherever."""
    most = max(ranks.values())
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model,
        "inference_mode": True,
        "r": most,
        "lora_alpha": most,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted(ranks),
        "rank_pattern": dict(ranks),
        "alpha_pattern": dict(ranks),
    }
