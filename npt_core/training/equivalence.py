"""Phase 1: an NPT model is trained to do what its teacher, a plain Llama, does.

Loss = CE + w_h * mean over layers of MSE(hidden, teacher hidden) / var(teacher hidden)
     + w_m * mean squared modulation (the Frobenius norm of what the adapters add, per element).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask

from npt_core.layers import Modulation
from npt_core.model import NPTForCausalLM
from npt_core.training.pretraining import weighted_cross_entropy


@dataclass(frozen=True)
class EquivalenceConfig:
    """Weights of the terms, and what is trained."""

    hidden_weight: float = 1.0
    modulation_weight: float = 1e-4
    final_hidden_only: bool = False
    """Compare the last hidden state alone instead of every layer's."""
    freeze_base: bool = False
    """Train the adapters alone; for models too big to train whole."""


def layer_outputs(model: Any, ids: Tensor) -> Iterator[Tensor]:
    """The output `[B, T, d]` of every layer of a Llama or an NPT model."""
    inner = model.model
    hidden = inner.embed_tokens(ids)
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    mask = create_causal_mask(
        config=inner.config,
        inputs_embeds=hidden,
        attention_mask=None,
        past_key_values=None,
        position_ids=positions,
    )
    rotary = inner.rotary_emb(hidden, position_ids=positions)
    for layer in inner.layers:
        hidden = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
        yield hidden


class EquivalenceLoss(nn.Module):
    """The terms of phase 1 for a batch; the teacher is frozen and no part of the module's state."""

    def __init__(self, student: NPTForCausalLM, teacher: nn.Module, config: EquivalenceConfig) -> None:
        super().__init__()
        self.student = student
        self.config = config
        # In a list: neither saved with the student's checkpoints nor trained.
        self._teacher = [teacher.eval().requires_grad_(False)]
        self._modulations: list[Modulation] = []
        adapters = [layer.mlp.adapter for layer in student.model.layers if layer.mlp.adapter is not None]
        if config.freeze_base:
            student.requires_grad_(False)
        for adapter in adapters:
            adapter.requires_grad_(True)
            adapter.register_forward_hook(self._keep)

    @property
    def frozen(self) -> list[nn.Module]:
        """The teacher: whoever moves or splits this module does the same with it."""
        return self._teacher

    def _keep(self, _module: nn.Module, _inputs: Any, modulation: Modulation) -> None:
        self._modulations.append(modulation)

    def forward(self, ids: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """`loss` and its terms; `ids` and `weights` `[B, T]`."""
        self._modulations.clear()
        inputs = ids[:, :-1]
        with torch.no_grad():
            targets = list(layer_outputs(self._teacher[0], inputs))
        outputs = list(layer_outputs(self.student, inputs))
        logits = self.student.lm_head(self.student.model.norm(outputs[-1]))
        ce = weighted_cross_entropy(logits, ids, weights)
        hidden = self._hidden_loss(outputs, targets)
        modulation = _mean_square(self._modulations)
        config = self.config
        loss = ce + config.hidden_weight * hidden + config.modulation_weight * modulation
        return {"loss": loss, "ce": ce, "hidden": hidden, "modulation": modulation}

    def _hidden_loss(self, outputs: list[Tensor], targets: list[Tensor]) -> Tensor:
        pairs = list(zip(outputs, targets, strict=True))
        if self.config.final_hidden_only:
            pairs = pairs[-1:]
        terms = [F.mse_loss(o.float(), t.float()) / t.float().var() for o, t in pairs]
        return torch.stack(terms).mean()


def _mean_square(modulations: list[Modulation]) -> Tensor:
    """Mean over layers of the mean squared element of all parts of the modulation."""
    parts = [part.float().square().mean() for m in modulations for part in m if part is not None]
    return torch.stack(parts).sum() / len(modulations)
