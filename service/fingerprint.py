"""A short name for the weights of a model: facts computed for one checkpoint fit no other."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

SAMPLES = 1024
"""Values read per tensor: enough to tell any two trainings apart, in milliseconds at any size."""


@torch.no_grad()
def fingerprint(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, shapes, types and evenly spaced values of `parameters`."""
    total = hashlib.sha256()
    for name, tensor in sorted(parameters, key=lambda item: item[0]):
        total.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLES)]
        total.update(sample.float().cpu().numpy().tobytes())
    return total.hexdigest()
