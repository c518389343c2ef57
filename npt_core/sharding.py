"""A linear map that is split among processes, each on a GPU of its own: tensor parallelism.

transformers splits the model by its plan (`NPTConfig.base_model_tp_plan`): the rows of gate, up and of the
adapter's heads, and the columns of `down_proj`, at the same places. So each process holds some of the `d_ffn`
neurons, and all of them hold the whole stream. What facts add is split where it has that width, too.
"""

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard


@dataclass(frozen=True)
class Share:
    """The neurons `[start, stop)` that this process holds, of those that `group` holds together."""

    start: int
    stop: int
    group: dist.ProcessGroup

    @property
    def width(self) -> int:
        """How many they are."""
        return self.stop - self.start

    def of(self, x: Tensor) -> Tensor:
        """Its part of `x` `[..., d_ffn]`, a copy."""
        return x[..., self.start : self.stop].contiguous()

    def total(self, part: Tensor) -> Tensor:
        """The sum of what all processes have computed, the same bits for each of them; `part` is written."""
        whole = part.contiguous()
        dist.all_reduce(whole, group=self.group)
        return whole


def share_of(linear: nn.Linear) -> Share | None:
    """Which inputs of `linear` this process holds; None where it holds all."""
    weight = linear.weight
    if not isinstance(weight, DTensor) or not any(p.is_shard(1) for p in weight.placements):
        return None
    mesh, total = weight.device_mesh, weight.shape[1]
    # As `torch.chunk` does, which leaves the last ones short where the width does not divide.
    start = min(mesh.get_local_rank() * -(-total // mesh.size()), total)
    return Share(start, start + weight.to_local().shape[1], mesh.get_group())


def local(tensor: Tensor) -> Tensor:
    """What this process holds of `tensor`."""
    held: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return held


def is_split(model: nn.Module) -> bool:
    """Whether this process holds a part of the model alone."""
    kept = [placement for p in model.parameters() if isinstance(p, DTensor) for placement in p.placements]
    return any(isinstance(placement, Shard) for placement in kept)
