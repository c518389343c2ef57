from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from npt_core.convert import convert_llama_to_npt
from npt_core.model import NPTForCausalLM
from npt_core.training.equivalence import EquivalenceConfig, EquivalenceLoss, layer_outputs
from tests.npt_core.helpers import Reference
from tests.npt_core.tiny import new_llama, new_npt

Batch = tuple[Tensor, Tensor]


@pytest.fixture
def student() -> NPTForCausalLM:
    return new_npt(seed=1)


@pytest.fixture
def batch() -> Batch:
    r = torch.Generator().manual_seed(2)
    return torch.randint(3, 400, (2, 11), generator=r), torch.rand(2, 11, generator=r)


def terms(student: NPTForCausalLM, batch: Batch, config: EquivalenceConfig) -> dict[str, Tensor]:
    found: dict[str, Tensor] = EquivalenceLoss(student, new_llama(), config)(*batch)
    return found


def hidden_terms(student: NPTForCausalLM, ids: Tensor) -> list[float]:
    """By layer `MSE / var`, from the layers' outputs as hooks see them."""
    seen: list[list[Tensor]] = []
    for model in (student, new_llama()):
        outputs: list[Tensor] = []
        handles = [
            layer.register_forward_hook(lambda _m, _i, y, o=outputs: o.append(y))
            for layer in model.model.layers
        ]
        with torch.no_grad():
            model(ids[:, :-1], use_cache=False)
        for handle in handles:
            handle.remove()
        seen.append(outputs)
    return [float(((a - b).double() ** 2).mean() / b.double().var()) for a, b in zip(*seen, strict=True)]


def test_every_term_equals_a_plain_computation(student: NPTForCausalLM, batch: Batch) -> None:
    ids, weights = batch
    config = EquivalenceConfig(hidden_weight=0.7, modulation_weight=0.3)
    found = {name: float(value) for name, value in terms(student, batch, config).items()}
    log_p = torch.stack([Reference(student).logits(row[:-1]) for row in ids]).log_softmax(-1)
    losses = -log_p.gather(-1, ids[:, 1:, None])[..., 0]
    kept = weights[:, 1:].double()
    assert found["ce"] == pytest.approx(float((losses * kept).sum() / kept.sum()), rel=1e-3)
    hidden = hidden_terms(student, ids)
    assert found["hidden"] == pytest.approx(sum(hidden) / len(hidden), rel=1e-3)
    squares = modulation_squares(student, ids)
    assert found["modulation"] == pytest.approx(sum(squares) / 2, rel=1e-3)
    whole = found["ce"] + 0.7 * found["hidden"] + 0.3 * found["modulation"]
    assert found["loss"] == pytest.approx(whole, rel=1e-5)


def modulation_squares(student: NPTForCausalLM, ids: Tensor) -> list[float]:
    """The mean square of every part of the modulation of both layers."""
    found: list[float] = []
    handles = [
        layer.mlp.adapter.register_forward_hook(
            lambda _m, _i, made: found.extend(float(p.double().square().mean()) for p in made)
        )
        for layer in student.model.layers
    ]
    with torch.no_grad():
        student(ids[:, :-1], use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def test_the_final_hidden_state_alone_may_be_compared(student: NPTForCausalLM, batch: Batch) -> None:
    found = terms(student, batch, EquivalenceConfig(final_hidden_only=True))
    assert float(found["hidden"]) == pytest.approx(hidden_terms(student, batch[0])[-1], rel=1e-3)


def test_layer_outputs_end_in_the_models_own_logits(student: NPTForCausalLM, batch: Batch) -> None:
    for model in (student, new_llama()):
        with torch.no_grad():
            last = list(layer_outputs(model, batch[0]))[-1]
            logits = model.lm_head(model.model.norm(last))
            torch.testing.assert_close(logits, model(batch[0]).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_base_trains_the_adapters_alone(student: NPTForCausalLM, batch: Batch, frozen: bool) -> None:
    loss = EquivalenceLoss(student, new_llama(), EquivalenceConfig(freeze_base=frozen))
    loss(*batch)["loss"].backward()
    for name, weight in student.named_parameters():
        trained = ".adapter." in name or not frozen
        # V2 has no other way from attention to the stream: every weight takes part.
        assert (weight.grad is not None and bool(weight.grad.any())) == trained, name


def test_the_teacher_is_neither_trained_nor_saved(student: NPTForCausalLM, batch: Batch) -> None:
    teacher = new_llama()
    loss = EquivalenceLoss(student, teacher, EquivalenceConfig())
    loss(*batch)["loss"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    ids = {id(p) for p in teacher.parameters()}
    assert not ids & {id(p) for p in loss.parameters()}
    assert all(name.startswith("student.") for name in loss.state_dict())


def test_a_second_batch_does_not_remember_the_first(student: NPTForCausalLM, batch: Batch) -> None:
    loss = EquivalenceLoss(student, new_llama(), EquivalenceConfig())
    first = {name: float(v) for name, v in loss(*batch).items()}
    loss(batch[0].flip(1), batch[1])
    assert {name: float(v) for name, v in loss(*batch).items()} == first


def test_a_perfect_student_has_no_hidden_loss(batch: Batch) -> None:
    teacher = new_llama()
    exact = new_npt_v1()
    found = EquivalenceLoss(exact, teacher, EquivalenceConfig())(*batch)
    assert float(found["hidden"]) == 0.0
    assert float(found["modulation"]) == 0.0
    logits = teacher(batch[0][:, :-1]).logits
    plain = F.cross_entropy(logits.flatten(0, 1), batch[0][:, 1:].flatten(), reduction="none")
    kept = batch[1][:, 1:].flatten()
    assert float(found["ce"]) == pytest.approx(float((plain * kept).sum() / kept.sum()), rel=1e-4)


def new_npt_v1() -> NPTForCausalLM:
    """V1 with zero adapters: the teacher itself."""
    return convert_llama_to_npt(new_llama(), "all", "v1", rank=4).eval()
