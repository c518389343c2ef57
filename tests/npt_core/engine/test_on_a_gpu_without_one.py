"""The GPU's path with tensors that have a device, shape and dtype, and no content.

What this holds: nothing is left on the CPU, no step looks at a number on the device (which waits for it,
and cannot be captured), and the real `varlen_attn` takes what it is called with.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from npt_core.bank import Bank, Columns, Factors, FactWeights, Whitening, resident
from npt_core.engine import SamplingParams, Span
from npt_core.engine.kernels import Kernels
from npt_core.engine.paged_runner import PagedRunner
from npt_core.engine.sampler import Sampler, choose_all
from npt_core.model import NPTForCausalLM
from tests.npt_core.engine.eager import Captures
from tests.npt_core.engine.test_paged_runner import D_FFN, WIDTH, D, decoding
from tests.npt_core.engine.test_runner import llama
from tests.npt_core.helpers import mixed_npt


def fact() -> FactWeights:
    keys = F.normalize(torch.randn(3, WIDTH), dim=-1)
    columns = {1: Columns(keys, torch.randn(3, D), torch.rand(3), torch.randn(3, D_FFN))}
    return FactWeights(columns, {(0, "down_proj"): Factors(torch.randn(1, D), torch.randn(1, D_FFN))})


@pytest.fixture
def served() -> NPTForCausalLM:
    """Made before anything is fake: initialising draws numbers."""
    return mixed_npt(llama(rope_parameters={"rope_type": "default", "rope_theta": 10000.0})).eval()


def moved(model: NPTForCausalLM) -> NPTForCausalLM:
    """`model` in bfloat16 on the device."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                like = torch.empty(weight.shape, device="cuda", dtype=torch.bfloat16)
                module._parameters[name] = torch.nn.Parameter(like, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, device="cuda", dtype=buffer.dtype)
    return model


class Unguarded(TorchFunctionMode):
    """Methods that ask for a device guard, which torch for CPUs lacks, by other operators."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__:
            return part(*args)
        if func is Tensor.__setitem__:
            return torch.ops.aten.copy_(part(*args[:2]), args[2])
        if func is Tensor.copy_:
            return torch.ops.aten.copy_(*args)
        if func is Tensor.new_tensor:
            return torch.tensor(args[1], dtype=args[0].dtype).to(args[0].device)
        if func is Tensor.contiguous:
            return args[0].clone(memory_format=torch.contiguous_format)
        return func(*args, **(kwargs or {}))


def part(x: Tensor, index: Any) -> Tensor:
    places = index if isinstance(index, tuple) else (index,)
    dim = 0
    for place in places:
        if place is Ellipsis:
            dim += x.dim() + sum(p is None for p in places) - (len(places) - 1)
        elif place is None:
            x, dim = x.unsqueeze(dim), dim + 1
        elif isinstance(place, slice):
            start, stop, step = place.indices(x.shape[dim])
            assert step == 1
            x, dim = x.narrow(dim, start, max(stop - start, 0)), dim + 1
        elif isinstance(place, int):
            x = x.select(dim, place)
        else:
            assert dim == 0
            x, dim = torch.ops.aten.index.Tensor(x, [place]), dim + 1
    return x


@pytest.fixture
def fake() -> Any:
    with FakeTensorMode(allow_non_fake_inputs=False) as mode, Unguarded():
        yield mode


def test_steps_run_on_the_device_alone_and_wait_for_nothing(
    served: NPTForCausalLM, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved(served)
    monkeypatch.setattr(resident, "_compiled_value_added", lambda: resident._value_added)
    bank = Bank(served, {1: Whitening(torch.zeros(D_FFN), torch.randn(D_FFN, WIDTH))}).attach()
    captures = Captures()
    runner = PagedRunner(served, 8, captures, Kernels.plain(served.model.layers[0].mlp.act_fn))
    for step in range(2):
        if step == 1:
            bank.publish(1, {"a": fact()})
        spans = [Span(decoding(0, version=bank.version), 0, 9), Span(decoding(1, length=30), 29, 30)]
        for planned in (spans, spans[1:] * 3, [Span(decoding(2, version=bank.version), 8, 9)] * 2):
            found = runner.run(planned)
            assert (found.device.type, found.dtype) == ("cuda", torch.float32)
            assert found.shape == (len(planned), served.config.vocab_size)
    assert captures.replays > 0


def test_the_fake_device_notices_who_looks(fake: Any) -> None:
    with pytest.raises(DataDependentOutputException):
        torch.zeros(2, device="cuda").tolist()


def test_choosing_tokens_looks_once(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens themselves are the only numbers that come back."""
    monkeypatch.setattr(Sampler, "draw", lambda _: 0.5)  # on the CPU, where everything is fake, too
    params = [SamplingParams(), SamplingParams(temperature=1.0, top_p=0.9, top_k=5, repetition_penalty=1.2)]
    samplers = [(Sampler(each), (3, 4, 5)) for each in params]
    with pytest.raises(DataDependentOutputException) as looked:
        choose_all(torch.randn(2, 60, device="cuda"), samplers)
    frames = [entry for entry in looked.traceback if entry.path.parent.name == "engine"]
    names = [entry.name for entry in frames if not entry.path.name.startswith("test_")]
    assert names[-1] == "choose_all"
