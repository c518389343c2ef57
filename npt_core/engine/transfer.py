"""Numbers of the host on a device."""

from collections.abc import Sequence as Seq

import torch
from torch import Tensor


def sent(values: Seq[object], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`values` on `device`; a GPU gets them from pinned memory, so that nobody waits for the copy."""
    pinned = device.type == "cuda" and torch.cuda.is_available()
    return torch.tensor(values, dtype=dtype, pin_memory=pinned).to(device, non_blocking=True)
