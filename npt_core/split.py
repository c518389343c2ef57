"""A checkpoint that is split among the processes of `torchrun`, each on a GPU of its own: it answers with the
facts that came with it, and does not learn.

Writing facts and the engine's steps compute with a whole model in one process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers.distributed import DistributedConfig

from npt_core.bank import Bank
from npt_core.checkpoint import load_checkpoint, resolve_folder
from npt_core.config import NPTConfig
from npt_core.generation import Decoding, generate
from npt_core.loading import BANK_FILE, end_ids, load_tokenizer, stored_calibration
from npt_core.model import NPTForCausalLM
from npt_core.placement import DType, placed
from npt_core.prompts import PromptTemplate, template_for

_ATTENTION = tuple(f"model.layers.*.self_attn.{name}_proj" for name in "qkvo")


@dataclass(frozen=True)
class SplitModel:
    """This process's part of a model, and what every process needs besides."""

    model: NPTForCausalLM
    template: PromptTemplate
    bank: Bank
    bank_file: Path | None
    """Facts that came with the checkpoint; whoever loads it publishes them, in every process."""

    def answers(
        self, prompts: Sequence[str], decoding: Decoding, weights_version: int | None = None
    ) -> list[str]:
        """The texts that continue `prompts`, the same in every process; all must call it alike."""
        ids = [self.template.encode(prompt) for prompt in prompts]
        return [self.template.decode(new) for new in generate(self.model, ids, decoding, weights_version)]


def load_split(source: str | Path, processes: int, dtype: DType = "auto") -> SplitModel:
    """Each of so many processes loads its part of a folder or hub id.

    Raises CheckpointError for anything missing or damaged, Unplaceable for a dtype that cannot be had.
    """
    folder = resolve_folder(source)
    model: Any = load_checkpoint(
        folder,
        placed("auto", dtype).dtype,
        attn_implementation="sdpa",
        distributed=lambda config: DistributedConfig(tp_size=processes, tp_plan=_plan(config, processes)),
    )
    tokenizer = load_tokenizer(folder)
    calibration = stored_calibration(folder)
    plain = calibration is not None and calibration.config.plain_text
    template = template_for(tokenizer, end_ids(model, tokenizer), plain)
    bank = Bank(model, {} if calibration is None else calibration.whitening).attach()
    brought = folder / BANK_FILE
    return SplitModel(model.eval(), template, bank, brought if brought.is_file() else None)


def _plan(config: NPTConfig, size: int) -> dict[str, str] | Literal["auto"]:
    """The model's own plan. Heads that cannot be shared out are computed by every process, all of them."""
    heads = (config.num_attention_heads, config.num_key_value_heads)
    if all(count is not None and count % size == 0 for count in heads):
        return "auto"
    return dict.fromkeys(_ATTENTION, "replicate")


def leader() -> bool:
    """Whether this process is the one that speaks for all."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
