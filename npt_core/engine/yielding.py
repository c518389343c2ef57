"""Makes a model's forwards give way to the engine."""

from typing import Any

from torch import nn

from npt_core.engine.gate import Gate


def give_way(model: nn.Module, gate: Gate) -> None:
    """Every linear map of `model`, which must not be the one that is served, passes `gate`.

    They are nearly all of a forward's time and short each, so a step waits little for one; and a
    turn that ends where it began cannot be left open by an exception in between.
    """

    def turn(_module: nn.Module, _inputs: Any) -> None:
        gate.turn()

    def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        gate.leave()

    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(turn)
            module.register_forward_hook(leave, always_call=True)
