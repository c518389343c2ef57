from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from npt_core.bank import Bank, Columns, FactWeights
from npt_core.consolidation import Calibration
from npt_core.consolidation.calibration import PROMPT_SHARE
from npt_core.consolidation.ridge import (
    apply_fold,
    fold,
    predicted_drift,
    regulariser,
    ridge_factors,
    ridge_weights,
)
from npt_core.consolidation.states import private_copy, run
from tests.npt_core.tiny import calibrated, new_npt, plain_template, shared_npt, texts

D, D_FFN = 32, 48
STRENGTH = 3.0


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrated(shared_npt(), plain_template())[0]


def fact(seed: int, rows: int = 3) -> FactWeights:
    r = torch.Generator().manual_seed(seed)
    return FactWeights(
        {
            i: Columns(
                torch.zeros(rows, 16),
                torch.randn(rows, D, generator=r),
                torch.zeros(rows),
                torch.randn(rows, D_FFN, generator=r).half(),
            )
            for i in (0, 1)
        }
    )


def n_side(facts: list[FactWeights], index: int, moment: Tensor, strength: float) -> Tensor:
    """`T (I + K^T M^-1 K)^-1 K^T M^-1`, the system with one row per column."""
    keys = torch.cat([f.columns[index].inputs for f in facts]).double().T
    values = torch.cat([f.columns[index].values for f in facts]).double().T
    inverse = torch.linalg.inv(regulariser(moment, strength))
    system = torch.eye(keys.shape[1], dtype=torch.float64) + keys.T @ inverse @ keys
    return values @ torch.linalg.inv(system) @ keys.T @ inverse


def test_folding_equals_the_formula_with_the_smaller_system(calibration: Calibration) -> None:
    facts = {"a": fact(1), "b": fact(2, rows=5)}
    for index, delta in fold(facts, calibration, STRENGTH).items():
        moment = calibration.layers[index].second_moment
        wanted = n_side([facts["a"], facts["b"]], index, moment, STRENGTH)
        torch.testing.assert_close(delta, wanted, rtol=1e-5, atol=1e-7)


def test_a_fold_that_reads_fewer_units_leaves_the_others_alone(calibration: Calibration) -> None:
    whole, half = (fold({"a": fact(1)}, calibration, STRENGTH, units) for units in (D_FFN, D_FFN // 2))
    assert all(torch.equal(whole[i], d) for i, d in fold({"a": fact(1)}, calibration, STRENGTH).items())
    keys = fact(1).columns
    for index, delta in half.items():
        assert int(delta.any(dim=0).sum()) == D_FFN // 2
        # What it can, it writes: the values come out, if less well than with all units.
        written = keys[index].inputs.double() @ delta.T
        assert float((written * keys[index].values).sum()) > 0


def test_the_factors_of_one_fact_are_its_fold(calibration: Calibration) -> None:
    weights = ridge_weights(fact(1), calibration, STRENGTH)
    deltas = fold({"a": fact(1)}, calibration, STRENGTH)
    assert weights.columns == {}
    assert set(weights.factors) == {(i, "down_proj") for i in deltas}
    for index, delta in deltas.items():
        factors = weights.factors[index, "down_proj"]
        torch.testing.assert_close((factors.left.T @ factors.right).double(), delta, rtol=1e-3, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(5)))
def test_the_order_of_facts_does_not_change_a_bit(order: list[int]) -> None:
    made = calibrated_once()
    wanted = fold({f"fact-{k}": fact(k) for k in range(5)}, made)
    found = fold({f"fact-{k}": fact(k) for k in order}, made)
    assert all(torch.equal(found[i], delta) for i, delta in wanted.items())


_KEPT: list[Calibration] = []


def calibrated_once() -> Calibration:
    if not _KEPT:
        _KEPT.append(calibrated(shared_npt(), plain_template())[0])
    return _KEPT[0]


def test_a_weak_regulariser_stores_what_it_is_given(calibration: Calibration) -> None:
    facts = {"a": fact(1)}
    strong, weak = (fold(facts, calibration, s) for s in (1e6, 1e-6))
    for index, columns in facts["a"].columns.items():
        keys = columns.inputs.double()
        torch.testing.assert_close((keys @ weak[index].T).float(), columns.values, rtol=1e-2, atol=1e-2)
        assert strong[index].norm() < 0.1 * weak[index].norm()


def test_the_predicted_drift_is_what_the_calibration_text_measures() -> None:
    model = private_copy(shared_npt())
    made, text = calibrated(model, plain_template())
    deltas = fold({"a": fact(1), "b": fact(2)}, made, STRENGTH)
    states = run(model, text.reference, (0, 1))
    prompts = [prompt.ids for prompt in text.prompts]
    ends_of = run(model, prompts, (0, 1), [[len(ids) - 1] for ids in prompts])
    measured = []
    for index, delta in deltas.items():
        every, ends = states.keys[index], ends_of.keys[index]
        weight = model.model.layers[index].mlp.down_proj.weight.double()
        moved = whole = 0.0
        for share, z in ((1 - PROMPT_SHARE, every.double()), (PROMPT_SHARE, ends.double())):
            moved += share * float((z @ delta.T).square().sum(-1).mean())
            whole += share * float((z @ weight.T).detach().square().sum(-1).mean())
        measured.append(moved / whole)
    drift = predicted_drift(deltas, made)
    assert drift > 0
    assert drift == pytest.approx(sum(measured) / len(measured), rel=1e-3)


def test_no_facts_fold_to_nothing_and_drift_by_nothing(calibration: Calibration) -> None:
    assert fold({}, calibration) == {}
    assert predicted_drift({}, calibration) == 0.0


def test_a_fold_is_applied_from_the_base_and_taken_back_bit_for_bit(
    calibration: Calibration,
) -> None:
    model = new_npt()
    base = {i: model.model.layers[i].mlp.down_proj.weight.detach().clone() for i in (0, 1)}
    deltas = fold({"a": fact(1)}, calibration, STRENGTH)
    for _ in range(2):  # applying again does not add again
        apply_fold(model, deltas, base)
    for i, delta in deltas.items():
        weight = model.model.layers[i].mlp.down_proj.weight
        assert torch.equal(weight, (base[i].double() + delta).float())
    apply_fold(model, {}, base)
    for i, weight in base.items():
        assert torch.equal(model.model.layers[i].mlp.down_proj.weight, weight)


@torch.no_grad()
def test_folded_weights_answer_like_published_factors(calibration: Calibration) -> None:
    model = new_npt()
    ids = torch.tensor([plain_template().encode(texts()[0])[:24]])
    bank = Bank(model, calibration.whitening).attach()
    bank.publish(1, {"a": ridge_weights(fact(1), calibration, STRENGTH)})
    published = model(ids, weights_version=1).logits
    base = {i: model.model.layers[i].mlp.down_proj.weight.detach().clone() for i in (0, 1)}
    apply_fold(model, fold({"a": fact(1)}, calibration, STRENGTH), base)
    folded = model(ids, weights_version=0).logits
    torch.testing.assert_close(folded, published, rtol=1e-3, atol=1e-3)


def test_columns_of_bf16_activations_solve_in_double(calibration: Calibration) -> None:
    columns = replace(fact(1).columns[0], inputs=fact(1).columns[0].inputs.bfloat16())
    factors = ridge_factors(columns, calibration.layers[0].second_moment, STRENGTH)
    assert factors.left.dtype == factors.right.dtype == torch.float32
    assert factors.left.isfinite().all()
    assert factors.right.isfinite().all()
