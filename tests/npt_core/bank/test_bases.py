"""Facts folded into `down_proj`, in a buffer of their own, while older versions are read."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from npt_core.bank import Bank, BankError, FactWeights, Fold
from npt_core.consolidation.ridge import apply_fold
from tests.npt_core.bank.test_bank import (
    D_FFN,
    D,
    bank_of,
    fact,
    inputs,
    logits,
    logits_of,
    model,
    new_bank,
    noise,
)
from tests.npt_core.tiny import new_npt


def deltas(seed: int, *layers: int) -> dict[int, Tensor]:
    return {i: noise(seed + i, D, D_FFN).double() / 10 for i in layers}


def folded_bank() -> Bank:
    """1: A and B are columns; 2: A is folded, B lives on; 3: both are folded; 4: as 1."""
    bank = bank_of("A", "B")
    bank.publish(2, {}, ["A"], deltas(1, 0, 1))
    bank.publish(3, {}, ["B"], deltas(5, 1))
    bank.publish(4, {n: fact(n) for n in "AB"}, deltas={})
    return bank


def test_folded_model_computes_with_the_original_plus_its_delta() -> None:
    bank, changed = new_bank(), new_npt()
    bank.publish(1, {}, deltas=deltas(1, 0, 1))
    base = {i: changed.model.layers[i].mlp.down_proj.weight.clone() for i in (0, 1)}
    apply_fold(changed, deltas(1, 0, 1), base)
    with torch.no_grad():
        wanted = changed(input_ids=inputs(), use_cache=False).logits
    torch.testing.assert_close(logits(bank), wanted, atol=1e-5, rtol=1e-5)
    assert not torch.equal(wanted, logits_of(frozenset()))


def test_every_version_gives_the_bits_of_a_process_that_has_it_alone() -> None:
    bank = folded_bank()
    partly, wholly = new_bank(), new_bank()
    partly.publish(1, {"B": fact("B")}, deltas=deltas(1, 0, 1))
    wholly.publish(1, {}, deltas=deltas(5, 1))
    alone = [
        logits_of(frozenset()),
        logits_of(frozenset("AB")),
        logits(partly),
        logits(wholly),
        logits_of(frozenset("AB")),
    ]
    for version, wanted in enumerate(alone):
        assert torch.equal(logits(bank, version), wanted), version
    assert torch.equal(logits(bank), alone[4])
    assert len({tuple(rows[0, 0, :9].tolist()) for rows in alone}) == 4


@pytest.mark.parametrize("mixed", [(0, 2, 4), (3, 1, 2), (2, 2, 3), (4, 0, 1)])
def test_versions_of_several_generations_in_one_batch_equal_each_alone(mixed: tuple[int, ...]) -> None:
    bank = folded_bank()
    together = logits(bank, torch.tensor(mixed))
    for row, version in enumerate(mixed):
        torch.testing.assert_close(together[row], logits(bank, version)[row], atol=1e-5, rtol=1e-5)


def test_only_generations_that_are_asked_for_are_multiplied() -> None:
    layer, calls = folded_bank().layers[1], list[Any]()

    def product(z: Tensor, matrix: Tensor | None) -> Tensor:
        calls.append((len(z), matrix))
        return z

    matrices = [base.matrix for base in layer.bases]
    z = torch.arange(5.0)[:, None]
    assert torch.equal(layer.project(product, z, torch.tensor([3, 1, 3, 4, 0])), z)
    assert [(n, m is matrices[1], m is None) for n, m in calls] == [(5, True, False), (5, False, True)]
    calls.clear()
    layer.project(product, z, torch.tensor([2, 2, 2, 2, 2]))
    layer.project(product, z, None)
    assert [(n, m is matrices[0], m is None) for n, m in calls] == [(5, True, False), (5, False, True)]


def test_own_weights_are_never_written() -> None:
    before = {name: tensor.clone() for name, tensor in model().state_dict().items()}
    logits(folded_bank())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model().state_dict().items())


def test_generations_nobody_needs_are_freed() -> None:
    bank = folded_bank()
    first, second = (weakref.ref(base.matrix) for base in bank.layers[1].bases[:2])  # type: ignore[type-var]
    bank.retire(3, lambda: 2)
    wanted = logits(bank, 2)
    assert first() is not None
    bank.retire(3)
    assert (first(), second() is not None) == (None, True)
    bank.retire(4)
    assert second() is None
    assert [layer.bases for layer in bank.layers] == [(), ()]
    assert torch.equal(logits(bank), logits_of(frozenset("AB")))
    bank.publish(5, {}, ["A"], deltas(1, 0, 1))
    assert torch.equal(logits(bank), wanted)


def test_fold_is_rounded_once_to_the_dtype_of_the_weights() -> None:
    narrow = new_npt().bfloat16()
    bank = Bank(narrow, {})
    bank.publish(1, {}, deltas=deltas(1, 0))
    weight = narrow.model.layers[0].mlp.down_proj.weight
    matrix = bank.layers[0].bases[0].matrix
    assert matrix is not None
    assert torch.equal(matrix.T, (weight.double() + deltas(1, 0)[0]).bfloat16())
    assert matrix.is_contiguous()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({7: torch.zeros(D, D_FFN)}, "no layer 7"),
        ({0: torch.zeros(D_FFN, D)}, "does not fit"),
        ({0: torch.full((D, D_FFN), torch.nan)}, "finite"),
    ],
)
def test_refused_fold_changes_nothing(wrong: dict[int, Tensor], message: str) -> None:
    bank = bank_of("A")
    with pytest.raises(BankError, match=message):
        bank.publish(2, {"B": FactWeights()}, ["A"], wrong)
    assert (bank.version, bank.facts, bank.layers[0].bases) == (1, {"A"}, ())
    assert torch.equal(logits(bank), logits_of(frozenset("A")))


def test_fold_survives_its_tensors() -> None:
    fold = Fold({1: torch.randn(3, 5, dtype=torch.float64)}, ("fact_b", "fact_a"))
    again = Fold.from_tensors(fold.to_tensors())
    assert again.facts == ("fact_a", "fact_b")
    assert torch.equal(again.deltas[1], fold.deltas[1])
    assert Fold.from_tensors(Fold({}, ()).to_tensors()).facts == ()


@pytest.mark.parametrize(
    "tensors",
    [
        {"fold.0": torch.zeros(1)},
        {"facts": torch.zeros(0), "fold.x": torch.zeros(1)},
        {"facts": torch.zeros(0), "columns.0.keys": torch.zeros(1)},
        {"facts": torch.tensor([300])},
        {"facts": torch.tensor([255])},
        {"facts": torch.tensor([0.5])},
    ],
)
def test_what_is_no_fold_is_refused(tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(BankError):
        Fold.from_tensors(tensors)
