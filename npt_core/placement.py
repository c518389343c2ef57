"""Where a model computes, and in which numbers."""

from typing import Literal, NamedTuple

import torch

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "float32", "bfloat16", "float16"]


class Unplaceable(Exception):
    """The machine or the engine does not compute what was asked for; the message says why."""


class Placement(NamedTuple):
    """The device and the dtype of a model's weights."""

    device: torch.device
    dtype: torch.dtype


def placed(device: Device, dtype: DType) -> Placement:
    """`auto` is a GPU where there is one, and bfloat16 there, float32 on a CPU. Raises Unplaceable."""
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise Unplaceable("no CUDA device: use device cpu, or auto")
    on_gpu = device == "cuda" or (device == "auto" and there)
    if dtype == "float32" and on_gpu:
        raise Unplaceable("attention on a GPU takes bfloat16 or float16, not float32")
    chosen = ("bfloat16" if on_gpu else "float32") if dtype == "auto" else dtype
    return Placement(torch.device("cuda" if on_gpu else "cpu"), getattr(torch, chosen))
