from __future__ import annotations

from itertools import chain

import pytest
import torch

from npt_core.bank import Bank
from npt_core.consolidation.states import plastic, private_copy, run
from npt_core.model import NPTForCausalLM
from tests.npt_core.tiny import new_npt

ROWS = [[1, 5, 9, 12], [1, 7], [1, 40, 41, 42, 43, 44]]


@pytest.fixture
def model() -> NPTForCausalLM:
    return new_npt()


def test_a_private_copy_shares_every_tensor_and_no_module(model: NPTForCausalLM) -> None:
    twin = private_copy(model)
    mine = dict(chain(model.named_parameters(), model.named_buffers()))
    its = dict(chain(twin.named_parameters(), twin.named_buffers()))
    assert mine.keys() == its.keys()
    assert all(its[name] is tensor for name, tensor in mine.items())
    assert not {id(m) for m in model.modules()} & {id(m) for m in twin.modules()}


def test_a_private_copy_has_no_bank_and_the_model_keeps_its_own(model: NPTForCausalLM) -> None:
    bank = Bank(model, {}).attach()
    twin = private_copy(model)
    assert all(layer.mlp.plastic is None for layer in twin.model.layers)
    assert [layer.mlp.plastic for layer in model.model.layers] == bank.layers


def test_work_on_the_copy_leaves_the_model_alone(model: NPTForCausalLM) -> None:
    twin = private_copy(model)
    trial = Bank(twin, {})
    seen: list[object] = []
    twin.model.layers[0].register_forward_hook(lambda *_: seen.append(1))
    with plastic(twin, trial.layers):
        run(twin, ROWS, (0, 1))
    assert seen == [1]
    model(torch.tensor([[1, 2, 3]]))
    assert seen == [1]
    assert all(layer.mlp.plastic is None for layer in model.model.layers)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_are_removed_even_if_the_pass_fails(model: NPTForCausalLM) -> None:
    with pytest.raises(IndexError):
        run(model, [[1, 10**6]], (0, 1))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_bank_before_is_put_back(model: NPTForCausalLM) -> None:
    before = Bank(model, {}).attach()
    inner = Bank(model, {})

    def work() -> None:
        with plastic(model, inner.layers):
            assert [layer.mlp.plastic for layer in model.model.layers] == inner.layers
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        work()
    assert [layer.mlp.plastic for layer in model.model.layers] == before.layers


@torch.no_grad()
def test_states_are_those_of_each_row_alone(model: NPTForCausalLM) -> None:
    states = run(model, ROWS, (0, 1))
    assert states.logits.shape == (12, 400)
    for k, row in enumerate(ROWS):
        alone = model(torch.tensor([row]), output_hidden_states=True)
        torch.testing.assert_close(states.logits[states.of(k)], alone.logits[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(
            states.outputs[0][states.of(k)], alone.hidden_states[1][0], rtol=1e-3, atol=1e-4
        )
    mlp = model.model.layers[1].mlp
    keys = states.keys[1]
    assert keys.shape == (12, 48)
    # V2: the layer's output is its input plus what down_proj makes of the keys.
    torch.testing.assert_close(
        states.outputs[0] + mlp.down_proj(keys), states.outputs[1], rtol=1e-3, atol=1e-4
    )


def test_what_is_asked_is_what_all_of_them_hold(model: NPTForCausalLM) -> None:
    asked = [[3], [0, 1], [1, 4, 5]]
    whole, some = run(model, ROWS, (1,)), run(model, ROWS, (1,), asked)
    places = whole.at([(row, t) for row, tokens in enumerate(asked) for t in tokens])
    assert torch.equal(some.logits, whole.logits[places])
    assert torch.equal(some.keys[1], whole.keys[1][places])
    assert torch.equal(some.outputs[1], whole.outputs[1][places])
    assert some.at([(2, 4), (0, 3)]).tolist() == [4, 0]
    assert some.of(2) == slice(3, 6)
    with pytest.raises(KeyError):
        some.at([(0, 0)])
