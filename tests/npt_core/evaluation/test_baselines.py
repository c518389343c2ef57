from __future__ import annotations

import pytest
import torch

from npt_core.bank import Columns, FactWeights
from npt_core.consolidation.ridge import ridge_weights
from npt_core.consolidation.states import private_copy
from npt_core.evaluation.baselines import values
from npt_core.evaluation.baselines.comparison import means, taught, timed
from npt_core.evaluation.baselines.editor import Subject, Taught
from npt_core.evaluation.baselines.finetuning import FineTuning
from npt_core.evaluation.baselines.located import Memit, Rome
from npt_core.evaluation.baselines.simple import Modulation, Ridge
from npt_core.evaluation.baselines.values import (
    Search,
    hidden_at,
    key_of,
    moments,
    places,
    target,
)
from npt_core.evaluation.speaker import edited, logits
from npt_core.evaluation.writing import drawn
from npt_core.generation import right_padded
from tests.npt_core.evaluation.bench import LAYER, tiny_runtime

FACTS = taught(drawn("random", 5, 3))


@pytest.fixture
def subject() -> Subject:
    runtime = tiny_runtime()
    return Subject(private_copy(runtime.model), runtime.template, runtime.consolidator)


def test_a_place_is_the_last_token_of_the_subject(subject: Subject) -> None:
    for fact in FACTS:
        for place in places(subject, fact):
            read = subject.template.decode(place.ids[: place.position + 1])
            assert read.casefold().endswith(fact.fact.subject.casefold())


def test_the_value_search_lowers_the_loss_and_leaves_no_hook(subject: Subject) -> None:
    model, where = subject.model, values.places(subject, FACTS[0])
    ids = right_padded([p.ids for p in where])
    free = Search(steps=15, kl_weight=0.0, decay=0.0)

    def loss(change: torch.Tensor) -> float:
        with values._added(model, 0, where, change):
            return float(values._surprise(logits(model, ids), where))

    found = target(model, where, 0, free)
    assert loss(found.change) < loss(torch.zeros(32))
    assert not model.model.layers[0].mlp._forward_hooks


def test_the_value_search_stays_within_its_length(subject: Subject) -> None:
    found = target(subject.model, places(subject, FACTS[0]), 0, Search(steps=9, largest=0.5))
    own = (found.value - found.change).norm()
    assert 0 < found.change.norm() <= 0.5 * own * 1.01


def test_rome_makes_the_key_give_the_value(subject: Subject) -> None:
    model, where = subject.model, places(subject, FACTS[0])
    editor = Rome(0, Search(steps=3))
    wanted, key = target(model, where, 0, editor.search), key_of(model, where, 0)
    (edits,) = editor.edits(subject, FACTS, [1])
    with edited(model, edits):
        got = model.model.layers[0].mlp.down_proj.weight @ key
    assert torch.allclose(got, wanted.value, atol=1e-3)
    assert torch.linalg.matrix_rank(edits[0, "down_proj"].float()) == 1


def test_memit_without_a_regulariser_reaches_its_goal(subject: Subject) -> None:
    model, where = subject.model, places(subject, FACTS[0])
    single = [where[0], where[-1]]
    editor = Memit((0,), 1e-9, Search(steps=3))
    goal = hidden_at(model, single, 0) + target(model, single, 0, editor.search).change
    edits = editor._spread(model, [single], [goal], moments(subject, [0]))
    with edited(model, edits):
        assert torch.allclose(hidden_at(model, single, 0), goal, atol=1e-2)


def test_memit_yields_a_joint_edit_for_each_count(subject: Subject) -> None:
    first, both = Memit((0,), 10.0, Search(steps=2)).edits(subject, FACTS, [1, 2])
    assert first.keys() == both.keys() == {(0, "down_proj")}
    assert not torch.equal(first[0, "down_proj"], both[0, "down_proj"])


def test_ridge_adds_up_the_facts_and_skips_refused_ones(subject: Subject) -> None:
    calibration = subject.consolidator.calibration
    torch.manual_seed(0)
    columns = Columns(torch.randn(2, 16), torch.randn(2, 32), torch.ones(2), torch.randn(2, 48))
    weights = FactWeights({LAYER: columns})
    facts = [Taught(i, FACTS[0].fact, "x", w) for i, w in enumerate((weights, None, weights))]
    one, two, three = Ridge(100.0).edits(subject, facts, [1, 2, 3])
    factors = ridge_weights(weights, calibration, 100.0).factors[LAYER, "down_proj"]
    assert torch.allclose(one[LAYER, "down_proj"].float(), factors.left.T @ factors.right)
    assert torch.equal(one[LAYER, "down_proj"], two[LAYER, "down_proj"])
    assert torch.allclose(three[LAYER, "down_proj"], 2 * one[LAYER, "down_proj"])


def test_modulation_changes_gates(subject: Subject) -> None:
    (edits,) = Modulation("factual_recall").edits(subject, FACTS, [2])
    assert set(edits) == {(0, "gate_proj"), (1, "gate_proj")}


def test_fine_tuning_lowers_the_loss_of_its_probes(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    from npt_core.consolidation.columns import align

    probe = align(subject.template, FACTS[0].statement, "Who is it?", [7, 9])
    monkeypatch.setattr(FineTuning, "_probes", staticmethod(lambda _s, _t: (probe,)))

    def loss() -> float:
        scores = logits(subject.model, torch.tensor([probe.student]))[0]
        where = probe.positions(probe.student)
        wanted = torch.tensor(probe.student[where.start + 1 :])
        return float(torch.nn.functional.cross_entropy(scores[where.start : where.stop], wanted))

    before = loss()
    weights = [layer.mlp.down_proj.weight for layer in subject.model.model.layers]
    (edits,) = FineTuning(1e-2, 5).edits(subject, FACTS, [1])
    after = [layer.mlp.down_proj.weight for layer in subject.model.model.layers]
    assert all(a is b for a, b in zip(after, weights, strict=True))
    with edited(subject.model, edits):
        assert loss() < before


def test_time_is_the_editors_own() -> None:
    edits = [{}, {}]
    (_, first), (_, second) = timed(iter(edits))
    assert 0 <= first <= second < 1


def test_means_are_over_those_that_have_the_metric() -> None:
    assert means([{"a": 1.0}, {"a": 0.0, "b": 2.0}]) == {"a": 0.5, "b": 2.0}
