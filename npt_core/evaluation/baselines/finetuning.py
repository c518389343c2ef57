"""Baseline: a few Adam steps on the fact's own probes, on `down_proj` of the same layers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from npt_core.bank import Site
from npt_core.consolidation import WriteRequest
from npt_core.consolidation.columns import AlignedProbe
from npt_core.evaluation.baselines.editor import Subject, Taught
from npt_core.evaluation.speaker import Edits, edited
from npt_core.generation import right_padded
from npt_core.model import NPTForCausalLM


@dataclass(frozen=True)
class FineTuning:
    """Each fact is trained for `steps` steps on what the facts before it left."""

    learning_rate: float = 1e-3
    steps: int = 10
    name: str = "fine-tuning"

    def edits(self, subject: Subject, facts: Sequence[Taught], counts: Sequence[int]) -> Iterator[Edits]:
        """The difference to the untouched weights; a fact without probes adds nothing."""
        layers = subject.consolidator.config.layers
        total: Edits = {(i, "down_proj"): torch.zeros_like(_weight(subject.model, i)) for i in layers}
        done = 0
        for n in counts:
            for taught in facts[done:n]:
                probes = self._probes(subject, taught)
                if probes:
                    total = self._trained(subject.model, probes, total)
            done = n
            yield total

    @staticmethod
    def _probes(subject: Subject, taught: Taught) -> tuple[AlignedProbe, ...]:
        consolidator = subject.consolidator
        request = WriteRequest(taught.statement, seed=taught.number)
        return consolidator.study(request, consolidator.config, taught.number).training

    def _trained(self, model: NPTForCausalLM, probes: Sequence[AlignedProbe], start: Edits) -> Edits:
        ids = right_padded([p.student for p in probes])
        targets = torch.full_like(ids, -100)
        for row, probe in enumerate(probes):
            where = probe.positions(probe.student)
            targets[row, where.start : where.stop] = ids[row, where.start + 1 : where.stop + 1]
        with edited(model, start):
            return self._descended(model, ids, targets, start)

    def _descended(self, model: NPTForCausalLM, ids: Tensor, targets: Tensor, start: Edits) -> Edits:
        """`start` plus the change of the weights; they are inside `edited`, which takes them back."""
        weights = {at: nn.Parameter(_weight(model, at[0]).clone()) for at in start}
        before = {at: _weight(model, at[0]).clone() for at in start}
        for at, weight in weights.items():
            model.model.layers[at[0]].mlp.down_proj.weight = weight
        optimizer = torch.optim.Adam(weights.values(), lr=self.learning_rate)
        for _ in range(self.steps):
            scores = model(input_ids=ids, use_cache=False).logits
            loss = F.cross_entropy(scores.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)
            gradients = torch.autograd.grad(loss, list(weights.values()))
            for weight, gradient in zip(weights.values(), gradients, strict=True):
                weight.grad = gradient
            optimizer.step()
        moved: dict[tuple[int, Site], Tensor] = {}
        for at, weight in weights.items():
            moved[at] = start[at] + (weight.detach() - before[at])
        return moved


def _weight(model: NPTForCausalLM, layer: int) -> Tensor:
    weight: Tensor = model.model.layers[layer].mlp.down_proj.weight.detach()
    return weight
