"""Numbers of the host on a device."""

from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import torch
from torch import Tensor


def sent(values: Seq[object] | np.ndarray[Any, Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`values` on `device`; a GPU gets them from pinned memory, so that nobody waits for the copy."""
    pinned = device.type == "cuda" and torch.cuda.is_available()
    return torch.tensor(values, dtype=dtype, pin_memory=pinned).to(device, non_blocking=True)
