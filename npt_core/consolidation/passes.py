"""What consolidation asks of the model: answers, and activations."""

from collections.abc import Sequence
from functools import partial
from typing import Protocol

from npt_core.bank import Bank
from npt_core.consolidation.states import Asked, States, run
from npt_core.generation import Decoding, generate
from npt_core.model import NPTForCausalLM


class Passes(Protocol):
    """Passes of a model without facts, unless a bank is given."""

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        *,
        groups: Sequence[int] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """See `npt_core.generation.generate`."""

    def read(
        self,
        rows: Sequence[Sequence[int]],
        layers: Sequence[int] = (),
        asked: Asked | None = None,
        bank: Bank | None = None,
        weights_version: int | None = None,
    ) -> States:
        """See `npt_core.consolidation.states.run`."""


class ModulePasses:
    """By the modules of a private copy of the model, wherever it lies and in whatever it computes."""

    def __init__(self, model: NPTForCausalLM) -> None:
        self.decode = partial(generate, model)
        self.read = partial(run, model)
