"""Training a model that is split among processes: fully sharded data parallelism, as torch has it.

accelerate's own plugin needs GPUs; this runs, and is tested, on any device. Each process holds its part of
weights, gradients and optimizer states; a layer is put together when its turn comes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.optim import Optimizer
from transformers import PreTrainedTokenizerBase
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from npt_core.layers import NPTDecoderLayer

LAYERS = (NPTDecoderLayer, LlamaDecoderLayer)


class NotLaunched(ValueError):
    """There is nothing to split a model among."""

    def __init__(self) -> None:
        super().__init__("a model is split among processes: start this with torchrun or accelerate launch")


def shard(module: nn.Module, device: torch.device) -> None:
    """Split `module`, which all processes have alike after this, layer by layer. Raises NotLaunched."""
    if not dist.is_initialized():
        raise NotLaunched
    module.to(device)
    for tensor in (*module.parameters(), *module.buffers()):
        dist.broadcast(tensor.detach(), 0)
    for layer in [part for part in module.modules() if isinstance(part, LAYERS)]:
        fully_shard(layer)
    fully_shard(module)
    for frozen in frozen_in(module):
        # Its parts are called one by one, so each puts itself together.
        inner = frozen.model
        for part in (inner.embed_tokens, *inner.layers):  # type: ignore[union-attr, misc]
            fully_shard(part, reshard_after_forward=True)


def frozen_in(module: nn.Module) -> Iterator[nn.Module]:
    """Models that losses compare with, and that are no part of them."""
    for part in module.modules():
        yield from getattr(part, "frozen", ())


def save_shards(module: nn.Module, made: list[Optimizer], progress: Stateful, folder: Path) -> None:
    """Every process writes its part."""
    model, optimizers = get_state_dict(module, made)
    dcp.save({"model": model, "optimizers": optimizers, "progress": progress}, checkpoint_id=folder)


def load_shards(module: nn.Module, made: list[Optimizer], progress: Stateful, folder: Path) -> None:
    """The inverse, into any number of processes."""
    model, optimizers = get_state_dict(module, made)
    dcp.load({"model": model, "optimizers": optimizers, "progress": progress}, checkpoint_id=folder)
    set_state_dict(module, made, model_state_dict=model, optim_state_dict=optimizers)


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The whole model, once, whether it is split or not. All processes call it, and find it there then."""
    weights = _whole(model) if any(isinstance(part, FSDPModule) for part in model.modules()) else None
    if not dist.is_initialized() or dist.get_rank() == 0:
        model.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)
    if dist.is_initialized():
        dist.barrier()


def _whole(model: Any) -> dict[str, Tensor]:
    """All weights, in the first process."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    tied = set(model.all_tied_weights_keys)
    weights = cast(dict[str, Tensor], get_model_state_dict(model, options=options))
    return {name: weight for name, weight in weights.items() if name not in tied}
