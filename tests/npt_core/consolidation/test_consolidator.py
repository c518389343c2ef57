"""What the consolidator decides before and around a write; real facts are in tests/reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from npt_core.bank import Bank, Columns, FactWeights
from npt_core.consolidation import (
    Calibration,
    Consolidated,
    Consolidator,
    InvalidRequest,
    NotRecalled,
    PlasticityConfig,
    Question,
    UnreadableFact,
    WriteReport,
    WriteRequest,
    pieces,
)
from npt_core.consolidation.consolidator import ATTEMPTS, READINGS
from npt_core.consolidation.passes import ModulePasses
from npt_core.consolidation.states import run
from npt_core.generation import Decoding
from npt_core.model import NPTForCausalLM
from tests.npt_core.tiny import FACT, QUESTION, calibrated, new_npt, plain_template


@pytest.fixture
def model() -> NPTForCausalLM:
    return new_npt()


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrated(new_npt(), plain_template(), layers=(0, 1), questions=2, look_alikes=2)[0]


@pytest.fixture
def consolidator(model: NPTForCausalLM, calibration: Calibration) -> Consolidator:
    return Consolidator(model, plain_template(), calibration)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("fact", {"fact": ""}),
        ("fact", {"fact": " \n\t "}),
        ("fact", {"fact": "word " * 2000}),
        ("strategy", {"strategy": "magic"}),
        ("alpha", {"alpha": 0.0}),
        ("alpha", {"alpha": -0.1}),
        ("alpha", {"alpha": 1.01}),
        ("alpha", {"alpha": float("nan")}),
        ("preset", {"preset": "perfect"}),
        ("layers", {"layers": ()}),
        ("layers", {"layers": (0, 7)}),
        ("layers", {"layers": (-1,)}),
        ("layers", {"layers": (1, 1)}),
        ("layers", {"layers": (2,), "strategy": "modulation"}),
    ],
)
def test_a_wrong_field_is_named_before_anything_is_tried(
    consolidator: Consolidator,
    monkeypatch: pytest.MonkeyPatch,
    field: str,
    values: dict[str, Any],
) -> None:
    def tried(*_: object) -> None:
        raise AssertionError("nothing may be tried")

    monkeypatch.setattr(consolidator, "_study", tried)
    with pytest.raises(InvalidRequest) as refused:
        consolidator.consolidate(WriteRequest(**{"fact": FACT, **values}))
    assert refused.value.field == field
    assert str(refused.value).startswith(f"{field}: ")


@pytest.mark.parametrize("token_idx", [500, -500])
def test_a_token_outside_the_fact_is_named(consolidator: Consolidator, token_idx: int) -> None:
    with pytest.raises(InvalidRequest) as refused:
        consolidator.consolidate(WriteRequest(FACT, strategy="modulation", token_idx=token_idx))
    assert refused.value.field == "token_idx"


def test_a_fact_the_model_cannot_read_is_refused_with_a_report(
    consolidator: Consolidator,
) -> None:
    with pytest.raises(UnreadableFact) as refused:
        consolidator.consolidate(WriteRequest(FACT, questions=(Question(QUESTION, "Szohod."),)))
    report = refused.value.report
    assert report.attempts == READINGS
    assert report.probes["training"] == 0
    assert set(report.timings) == {"study"}


def test_a_refusal_leaves_the_serving_model_as_it_was(
    model: NPTForCausalLM, calibration: Calibration
) -> None:
    bank = Bank(model, calibration.whitening).attach()
    ids = torch.tensor([plain_template().encode(QUESTION)])
    before = model(ids).logits
    consolidator = Consolidator(model, plain_template(), calibration)
    with pytest.raises(UnreadableFact):
        consolidator.consolidate(WriteRequest(FACT))
    assert [layer.mlp.plastic for layer in model.model.layers] == bank.layers
    assert bank.version == 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model(ids).logits, before)


def attempts_of(
    consolidator: Consolidator,
    monkeypatch: pytest.MonkeyPatch,
    outcomes: list[Exception | Consolidated],
) -> list[PlasticityConfig]:
    """The parameters of every rung, where rung k ends with outcome k."""
    seen: list[PlasticityConfig] = []

    def attempt(_r: object, config: PlasticityConfig, _study: object, number: int, _w: object) -> object:
        seen.append(config)
        outcome = outcomes[number - 1]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(consolidator, "_attempt", attempt)
    return seen


def refusal(**report: Any) -> NotRecalled:
    return NotRecalled("no", WriteReport("bank", **report))


WRITTEN = Consolidated(FactWeights(), WriteReport("bank"))


def test_the_first_success_ends_the_ladder(
    consolidator: Consolidator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = attempts_of(consolidator, monkeypatch, [refusal(), WRITTEN])
    assert consolidator.consolidate(WriteRequest(FACT)) is WRITTEN
    assert seen[0] == consolidator.config
    assert seen[1].questions > seen[0].questions


def test_what_disturbs_others_is_tried_more_strictly(
    consolidator: Consolidator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = attempts_of(consolidator, monkeypatch, [refusal(locality=0.5), WRITTEN])
    consolidator.consolidate(WriteRequest(FACT))
    assert seen[1].threshold > seen[0].threshold
    assert seen[1].margin > seen[0].margin


def test_the_last_refusal_is_the_answer(consolidator: Consolidator, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = [refusal(attempts=k) for k in range(1, ATTEMPTS + 1)]
    seen = attempts_of(consolidator, monkeypatch, [*outcomes])
    with pytest.raises(NotRecalled) as refused:
        consolidator.consolidate(WriteRequest(FACT))
    assert refused.value is outcomes[-1]
    assert len(seen) == ATTEMPTS


def test_chosen_layers_are_kept_on_every_rung(
    consolidator: Consolidator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = attempts_of(consolidator, monkeypatch, [refusal() for _ in range(ATTEMPTS)])
    with pytest.raises(NotRecalled):
        consolidator.consolidate(WriteRequest(FACT, layers=(1,)))
    assert {config.layers for config in seen} == {(1,)}


def test_the_original_rule_is_tried_once(consolidator: Consolidator, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = attempts_of(consolidator, monkeypatch, [refusal()])
    with pytest.raises(NotRecalled):
        consolidator.consolidate(WriteRequest(FACT, strategy="modulation"))
    assert len(seen) == 1


def test_locality_is_the_share_of_prompts_that_no_column_touches(
    consolidator: Consolidator, calibration: Calibration
) -> None:
    layer = calibration.layers[1]
    alike = layer.locality @ layer.locality.T
    fires = alike[0] > 0.95  # the column is the first locality key itself
    touched = set(calibration.locality_owner[fires].tolist())
    columns = Columns(layer.locality[:1], torch.ones(1, 32), torch.tensor([0.95]), torch.ones(1, 48).half())
    locality, drift = consolidator._disturbance(FactWeights({1: columns}))
    assert locality == pytest.approx(1 - len(touched) / calibration.locality_rows)
    assert locality < 1
    assert drift == pytest.approx(float(fires.float().mean()))
    silent = replace(columns, thresholds=torch.tensor([1.1]))
    assert consolidator._disturbance(FactWeights({1: silent})) == (1.0, 0.0)


def test_facts_studied_together_get_the_studies_they_would_get_alone(consolidator: Consolidator) -> None:
    facts = [FACT, "The element Trilium has an atomic weight of 12.", "Nobody leads Borduria."]
    requests = [WriteRequest(fact, seed=k) for k, fact in enumerate(facts)]
    together = consolidator.studies(requests)
    alone = [consolidator.study(r, consolidator.config, r.seed) for r in requests]
    assert [s.written for s in together] == [s.written for s in alone]
    assert [s.prompts for s in together] == [s.prompts for s in alone]
    assert [s.training for s in together] == [s.training for s in alone]


def test_one_wrong_request_does_not_stop_the_others(
    consolidator: Consolidator, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts_of(consolidator, monkeypatch, [WRITTEN])
    outcomes = consolidator.consolidate_all([WriteRequest(FACT), WriteRequest(""), WriteRequest(FACT)])
    assert outcomes[0] is outcomes[2] is WRITTEN
    assert isinstance(outcomes[1], InvalidRequest)
    assert consolidator.consolidate_all([]) == []


def test_pauses_between_pieces_change_nothing(consolidator: Consolidator) -> None:
    before = run(consolidator.model, [[5, 6, 7]], ()).logits
    pauses = list[int]()
    consolidator.give_way(lambda: pauses.append(1))
    assert torch.equal(run(consolidator.model, [[5, 6, 7]], ()).logits, before)
    linear_maps = sum(isinstance(module, torch.nn.Linear) for module in consolidator.model.modules())
    assert len(pauses) > 2 * linear_maps


def test_self_study_asks_who_it_is_told_to_ask(consolidator: Consolidator) -> None:
    asked = list[Decoding]()

    def decode(prompts: Sequence[Sequence[int]], decoding: Decoding, **_given: object) -> list[list[int]]:
        asked.append(decoding)
        return [[] for _ in prompts]

    silent = ModulePasses(consolidator.model)
    silent.decode = decode  # type: ignore[assignment]
    consolidator.give_way(lambda: None, silent)
    assert not consolidator.study(WriteRequest(FACT), consolidator.config, 0).training
    assert [decoding.temperature > 0 for decoding in asked] == [True, False]


def test_a_large_product_is_computed_in_parts(
    consolidator: Consolidator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [list(range(3, 43))] * 3
    before = run(consolidator.model, rows, ()).logits
    pauses = list[int]()
    consolidator.give_way(lambda: pauses.append(1))
    after = run(consolidator.model, rows, ()).logits
    whole = len(pauses)
    monkeypatch.setattr(pieces, "PIECE", 1)
    in_parts = run(consolidator.model, rows, ()).logits
    assert torch.equal(after, before)
    linear_maps = sum(isinstance(module, torch.nn.Linear) for module in consolidator.model.modules())
    assert len(pauses) - whole == whole + linear_maps * -(-len(rows) * 40 // pieces.MIN_ROWS)
    torch.testing.assert_close(in_parts, before)
