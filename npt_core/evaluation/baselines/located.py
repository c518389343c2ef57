"""ROME (Meng et al. 2022) and MEMIT (Meng et al. 2023), from their formulas.

Both store a fact in `down_proj` at the last token of its subject: the key `k` is the activation
there, the value is found by gradient descent so that the statement goes on with the object.

    ROME    dW = (v* - W k) (C^-1 k)^T / (k^T C^-1 k)                 one layer
    MEMIT   dW_l = R_l K_l^T (lambda C_l + K_l K_l^T)^-1              several, low to high

with `C = E[k k^T]` of ordinary text, `R_l` what the last layer still lacks, divided by the layers
left. Both are told subject and object.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from npt_core.bank import Site
from npt_core.evaluation.baselines.editor import Subject, Taught
from npt_core.evaluation.baselines.values import (
    Place,
    Search,
    hidden_at,
    key_of,
    moments,
    places,
    target,
)
from npt_core.evaluation.speaker import Edits, combined, edited
from npt_core.model import NPTForCausalLM

DEFAULT_SEARCH = Search()
Matrices = dict[tuple[int, Site], Tensor]


@dataclass(frozen=True)
class Rome:
    """One rank-one update of one layer per fact, each on what the facts before it left."""

    layer: int
    search: Search = DEFAULT_SEARCH
    name: str = "ROME"

    def edits(self, subject: Subject, facts: Sequence[Taught], counts: Sequence[int]) -> Iterator[Edits]:
        """Updates of `down_proj` of `layer`."""
        model = subject.model
        moment = moments(subject, [self.layer])[self.layer]
        total: Matrices = {}
        done = 0
        for n in counts:
            for taught in facts[done:n]:
                with edited(model, total):
                    update = self._update(subject, places(subject, taught), moment)
                total = combined(total, {(self.layer, "down_proj"): update})
            done = n
            yield total

    def _update(self, subject: Subject, where: Sequence[Place], moment: Tensor) -> Tensor:
        model = subject.model
        wanted = target(model, where, self.layer, self.search)
        key = key_of(model, where, self.layer).double()
        weight = model.model.layers[self.layer].mlp.down_proj.weight.detach().double()
        direction = torch.linalg.solve(moment, key)
        lacks: Tensor = wanted.value.double() - weight @ key
        update: Tensor = torch.outer(lacks, direction) / (key @ direction)
        return update


@dataclass(frozen=True)
class Memit:
    """Many facts at once, spread over `layers`; the values are found in the untouched model."""

    layers: tuple[int, ...]
    strength: float = 1000.0
    search: Search = DEFAULT_SEARCH
    name: str = "MEMIT"

    def edits(self, subject: Subject, facts: Sequence[Taught], counts: Sequence[int]) -> Iterator[Edits]:
        """For each n, one joint update of the first n facts."""
        model, last = subject.model, self.layers[-1]
        moment = moments(subject, self.layers)
        where = [places(subject, t) for t in facts[: counts[-1]]]
        goals = [
            hidden_at(model, place, last) + target(model, place, last, self.search).change for place in where
        ]
        for n in counts:
            yield self._spread(model, where[:n], goals[:n], moment)

    def _spread(
        self,
        model: NPTForCausalLM,
        where: Sequence[Sequence[Place]],
        goals: Sequence[Tensor],
        moment: Mapping[int, Tensor],
    ) -> Edits:
        total: Matrices = {}
        for k, layer in enumerate(self.layers):
            with edited(model, total):
                keys = torch.stack([key_of(model, place, layer) for place in where]).double()
                lacks = [
                    goal - hidden_at(model, place, self.layers[-1])
                    for goal, place in zip(goals, where, strict=True)
                ]
            residual = torch.stack(lacks).double() / (len(self.layers) - k)
            system = self.strength * moment[layer] + keys.T @ keys
            total[layer, "down_proj"] = torch.linalg.solve(system, keys.T @ residual).T
        return total
