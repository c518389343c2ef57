"""A GPU's runner on a CPU: the kernel for attention is a double, and graphs are computed, not replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from npt_core.engine import paged_attention, paged_runner
from npt_core.engine.graphs import Replay
from npt_core.engine.kernels import Kernels
from npt_core.engine.paged_runner import PagedRunner
from tests.npt_core.engine.varlen_double import VarlenDouble


class Captures:
    """A capture that computes the step again at each replay, into the same tensor."""

    def __init__(self) -> None:
        self.made = 0
        self.replays = 0

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        self.made += 1
        output = step().fill_(float("nan"))  # what capturing computes is nobody's answer
        return _Eager(self, step, output), output


class _Eager:
    def __init__(self, captures: Captures, step: Callable[[], Tensor], output: Tensor) -> None:
        self._captures, self._step, self._output = captures, step, output

    def replay(self) -> None:
        self._captures.replays += 1
        self._output.copy_(self._step())


def on_cpu(
    model: Any, patch: pytest.MonkeyPatch, num_pages: int = 40, exact: bool = True
) -> tuple[PagedRunner, VarlenDouble, Captures]:
    """The runner, and what it calls instead of the GPU."""
    attention, captures = VarlenDouble(exact), Captures()
    patch.setattr(paged_attention, "varlen_attn", attention)
    if exact:
        patch.setattr(paged_runner, "check_attention", lambda *_: None)
    kernels = Kernels.plain(model.model.layers[0].mlp.act_fn)
    return PagedRunner(model, num_pages, captures, kernels), attention, captures
