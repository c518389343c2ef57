"""The last rung: a few gradient steps on the values of columns that were not recalled."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from npt_core.bank import Bank, FactWeights, Whitening
from npt_core.consolidation.columns import AlignedProbe
from npt_core.consolidation.states import plastic
from npt_core.generation import right_padded
from npt_core.model import NPTForCausalLM

LEARNING_RATE = 0.05
"""Of Adam, relative to the root mean square of the values."""


def refine(
    model: NPTForCausalLM,
    whitening: Mapping[int, Whitening],
    weights: FactWeights,
    probes: Sequence[AlignedProbe],
    steps: int,
) -> FactWeights:
    """The same keys and thresholds, with values that lower the loss of the probes' answers."""
    if not weights.columns:
        return weights
    values = {i: c.values.clone().requires_grad_() for i, c in weights.columns.items()}
    scale = torch.cat([v.detach().flatten() for v in values.values()]).square().mean().sqrt()
    optimizer = torch.optim.Adam(values.values(), lr=LEARNING_RATE * float(scale))
    ids = right_padded([p.student for p in probes]).to(model.device)
    answers = _answers(ids, probes)
    # The token before each of an answer's gives it: nothing else needs scores, which are the largest tensors.
    asked = answers[:, 1:] >= 0
    targets = answers[:, 1:][asked]
    for _ in range(steps):
        trial = Bank(model, whitening)
        trial.publish(1, {"trial": _with_values(weights, values)})
        with plastic(model, trial.layers), torch.enable_grad():
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
            loss = F.cross_entropy(model.lm_head(hidden[asked]), targets)
        if not loss.requires_grad:  # No column fires on any probe: there is nothing to refine.
            return weights
        # A layer's columns may fire nowhere, or only under others': their gradient is None.
        gradients = torch.autograd.grad(loss, list(values.values()), allow_unused=True)
        for value, gradient in zip(values.values(), gradients, strict=True):
            value.grad = gradient
        optimizer.step()
    return _with_values(weights, {i: v.detach() for i, v in values.items()})


def _answers(ids: Tensor, probes: Sequence[AlignedProbe]) -> Tensor:
    """`ids` with everything but the answer tokens replaced by -1."""
    targets = torch.full_like(ids, -1)
    for row, probe in enumerate(probes):
        end = len(probe.student)
        targets[row, end - probe.answer : end] = ids[row, end - probe.answer : end]
    return targets


def _with_values(weights: FactWeights, values: Mapping[int, Tensor]) -> FactWeights:
    columns = {i: replace(c, values=values[i]) for i, c in weights.columns.items()}
    return replace(weights, columns=columns)
