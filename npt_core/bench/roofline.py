"""The bound that memory sets: bytes a token moves, over bytes a second that can be read."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from npt_core.bench.load import NEW_TOKENS, PROMPT_TOKENS
from npt_core.model import NPTForCausalLM

_BIG = {"cpu": 2**30, "cuda": 2**33}
"""Bytes of the array that stands for memory: caches of a few hundred MiB exist, and of the short time that a
GPU takes for 1 GiB its start and end are a part."""
_REPEATS = 5


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second, the best of several passes with torch's threads.

    `memory` is read from an array far larger than caches; `resident` again and again from an array
    of the model's own size, which a large cache may hold.
    """

    memory: float
    resident: float


def measure_roofline(
    models: Mapping[str, NPTForCausalLM], loads: Mapping[str, Sequence[Mapping[str, Any]]], streams: int
) -> dict[str, Any]:
    """The bandwidth, and for each row of `loads` in `models` its bound at `streams` and its share of it.

    A share above 1 means that the weights come from a cache.
    """
    largest = max(weight_bytes(model) for model in models.values())
    device = next(iter(models.values())).device
    bandwidth = measure_bandwidth(largest, device)
    lines = []
    for name, model in models.items():
        moved = bytes_per_token(model, streams)
        bound = bandwidth.memory / moved
        reached = next((f.get("tokens_per_s") for f in loads[name] if f["streams"] == streams), None)
        lines.append(
            {
                "row": name,
                "bytes_per_token": moved,
                "bound_tokens_per_s": bound,
                "bound_resident_tokens_per_s": bandwidth.resident / moved,
                "reached_tokens_per_s": reached,
                "share": None if reached is None else reached / bound,
            }
        )
    return {"streams": streams, "bandwidth": asdict(bandwidth), "lines": lines}


def measure_bandwidth(model_bytes: int, device: torch.device) -> Bandwidth:
    """That of `device`; takes 1 GiB of its memory for a moment, of a GPU 8, or half of what is free."""
    size = _size(device)
    big = torch.ones(size // 4, device=device)
    memory = size / _least_seconds(big.sum, _REPEATS, device)
    del big
    small = torch.ones(max(model_bytes // 4, 1), device=device)
    resident = 4 * len(small) / _least_seconds(small.sum, 10 * _REPEATS, device)
    return Bandwidth(memory, resident)


def _size(device: torch.device) -> int:
    if device.type != "cuda":
        return _BIG["cpu"]
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return min(_BIG["cuda"], free // 2) // 4 * 4


def weight_bytes(model: NPTForCausalLM) -> int:
    """Bytes of weights that one step of our engine reads: all but an embedding that is no head, and but
    `o_proj` of V2 layers, which is multiplied into the adapter's A.
    """
    weights = {id(p): p for p in model.parameters()}
    if not model.config.tie_word_embeddings:
        del weights[id(model.model.embed_tokens.weight)]
    layers: Any = model.model.layers
    for layer in layers:
        if layer.variant == "v2":
            del weights[id(layer.self_attn.o_proj.weight)]
    return sum(p.numel() * p.element_size() for p in weights.values())


def bytes_per_token(model: NPTForCausalLM, streams: int) -> int:
    """Bytes moved for one token of one of `streams` streams, halfway through its answer.

    The weights are read once a step for all streams, keys and values once for each.
    """
    projections: list[Any] = [layer.self_attn.k_proj for layer in model.model.layers]
    entry: int = sum(2 * p.out_features * p.weight.element_size() for p in projections)
    length = PROMPT_TOKENS + NEW_TOKENS // 2
    moved = entry * (length + 1)  # all entries so far are read, one is written
    return weight_bytes(model) // streams + moved


def _least_seconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    seconds = _seconds_of_a_gpu if device.type == "cuda" else _seconds
    seconds(work)  # the first sum loads its kernel
    return min(seconds(work) for _ in range(repeats))


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _seconds_of_a_gpu(work: Callable[[], object]) -> float:
    """By its own clock: that of the host has the launch, and the way back, in it."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000
