from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from npt_core.bank import Bank, FactWeights, Whitening
from npt_core.consolidation import Calibration, PlasticityConfig
from npt_core.consolidation.calibration import LayerStatistics
from npt_core.consolidation.columns import (
    AlignedProbe,
    Lesson,
    align,
    answered,
    chosen_columns,
    lesson,
    scaled,
    thresholds_of,
    write,
)
from npt_core.consolidation.columns import taught as teacher_of
from npt_core.consolidation.passes import ModulePasses
from npt_core.consolidation.probes import Probe
from npt_core.consolidation.states import private_copy
from npt_core.model import NPTForCausalLM
from npt_core.prompts import PromptTemplate
from tests.npt_core.tiny import FACT, QUESTION, TEMPLATES, calibrated, plain_template, shared_npt

OTHER = "The capital of Syldavia is Klow."


@pytest.fixture
def model() -> NPTForCausalLM:
    return private_copy(shared_npt())


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    """No key of another text stands in the way: a random model's keys are all alike."""
    made, _ = calibrated(shared_npt(), plain_template(), threshold=0.9, surprise=0.01, margin=0.0)
    layers = {
        i: replace(s, reference=s.reference[:0], following=s.following[:0]) for i, s in made.layers.items()
    }
    return replace(made, layers=layers)


def probes_of(fact: str) -> list[Probe]:
    subject, answer = fact.removeprefix("The capital of ").split(" is ")
    question = f"What is the capital of {subject}?"
    forms = plain_template().question_forms(question)
    return [Probe(form, answer, question) for form in forms]


def taught(model: NPTForCausalLM, fact: str, layers: tuple[int, ...]) -> Lesson:
    template = plain_template()
    aligned = [align(template, fact, p.prompt, template.encode(f" {p.answer}")[1:]) for p in probes_of(fact)]
    passes = ModulePasses(model)
    return lesson(passes, aligned, teacher_of(passes, aligned, layers), layers)


def written(model: NPTForCausalLM, calibration: Calibration, fact: str) -> FactWeights:
    config = calibration.config
    nothing = {i: calibration.layers[i].reference for i in config.layers}
    lesson_of = taught(model, fact, config.layers)
    return write(model, calibration, config, lesson_of, nothing)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("answer", ["Szohod.", "'ZPX 19-4'.", "Dr. Ana Ruiz."])
def test_alignment_finds_the_answer_and_the_common_tail(name: str, answer: str) -> None:
    template: PromptTemplate = TEMPLATES[name]()
    end = template.eos_token_ids[0]
    for form in template.question_forms(QUESTION):
        ids = template.encode(template.answered(form, [], answer))
        written = ids[len(template.encode(template.with_context(form, []))) :]
        aligned = align(template, FACT, form, written)
        assert aligned.teacher[-1] == aligned.student[-1] == end
        assert aligned.teacher[-aligned.shared :] == aligned.student[-aligned.shared :]
        longer = aligned.shared + 1
        whole = aligned.shared == len(aligned.student)
        assert whole or aligned.teacher[-longer] != aligned.student[-longer]
        tail = aligned.student[-aligned.answer : -1]
        assert template.decode(tail).strip() == answer
        for ids in (aligned.teacher, aligned.student):
            where = aligned.positions(ids)
            assert len(where) == aligned.answer
            assert ids[where.start + 1 : where.stop + 1] == [*tail, end]


def test_reproduction_means_every_argmax_is_right() -> None:
    probe = AlignedProbe([1, 5, 6, 7, 2], [1, 6, 7, 2], shared=3, answer=2)
    logits = F.one_hot(torch.tensor([7, 2]), 9).float()
    assert probe.reproduced(logits)
    for wrong in (0, 1):
        spoiled = logits.clone()
        spoiled[wrong, 8] = 9.0
        assert not probe.reproduced(spoiled)


def test_surprise_is_the_divergence_of_the_teacher_from_the_student(
    model: NPTForCausalLM,
) -> None:
    result = taught(model, FACT, (0, 1))
    assert len(result.surprise) == sum(p.answer for p in result.probes)
    for (row, t), found in result.surprise.items():
        at = result.teacher_position((row, t))
        (p,) = torch.softmax(result.teacher.logits[result.teacher.at([at])].double(), -1)
        (q,) = torch.softmax(result.student.logits[result.student.at([(row, t)])].double(), -1)
        assert found == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-3, abs=1e-5)
        assert result.probes[row].teacher[at[1]] == result.probes[row].student[t]


def statistics_of(reference: Tensor, following: Tensor) -> LayerStatistics:
    """A layer that knows these reference keys, and nothing else."""
    nothing = torch.empty(0)
    return LayerStatistics(Whitening(nothing, nothing), reference, following, nothing, nothing, 1.0)


@settings(deadline=None)
@given(st.integers(0, 2**30), st.integers(0, 6), st.integers(0, 40), st.integers(0, 5))
def test_thresholds_clear_every_foreign_key(seed: int, count: int, references: int, foreign: int) -> None:
    r = torch.Generator().manual_seed(seed)
    keys, reference, others = (
        F.normalize(torch.randn(n, 8, generator=r), dim=-1) for n in (count, references, foreign)
    )
    targets, following = (torch.randint(0, 3, (n,), generator=r) for n in (count, references))
    config = PlasticityConfig(layers=(0,), threshold=0.3, margin=0.05, same_question=0.5)
    asks = torch.zeros(count, dtype=torch.bool)
    thresholds = thresholds_of(keys, targets, asks, statistics_of(reference, following), others, config)
    assert thresholds.shape == (count,)
    assert (thresholds >= 0.3 - 1e-6).all()
    for k in range(count):
        harmful = [key for key, token in zip(reference, following, strict=True) if token != targets[k]]
        for other in (*harmful, *others):
            assert keys[k] @ other <= thresholds[k] - 0.05 + 1e-5


def test_neither_its_own_question_nor_its_own_next_token_silences_a_column() -> None:
    keys = F.normalize(torch.tensor([[1.0, 0.0, 0.0]]), dim=-1)
    reference = F.normalize(torch.tensor([[1.0, 0.05, 0.0], [1.0, 1.0, 0.0]]), dim=-1)
    statistics = statistics_of(reference, torch.tensor([7, 8]))
    config = PlasticityConfig(layers=(0,), threshold=0.3, margin=0.05, same_question=0.95)
    yes, no, nothing = torch.tensor([True]), torch.tensor([False]), reference[:0]

    def threshold(target: int, asks: Tensor, foreign: Tensor) -> float:
        return float(thresholds_of(keys, torch.tensor([target]), asks, statistics, foreign, config))

    apart = pytest.approx(0.5**0.5 + 0.05)
    assert threshold(9, yes, nothing) == apart
    assert threshold(7, no, nothing) == apart
    assert threshold(9, no, nothing) > 1.0
    # A look-alike asks about somebody else, however close it comes.
    assert threshold(7, yes, reference[:1]) > 1.0


@settings(deadline=None)
@given(st.integers(0, 2**30), st.integers(0, 12))
def test_chosen_columns_cover_every_specific_token_once(seed: int, count: int) -> None:
    r = torch.Generator().manual_seed(seed)
    kinds = torch.randint(0, 3, (count,), generator=r)
    keys = F.normalize(torch.eye(8)[kinds] + 0.05 * torch.randn(count, 8, generator=r), dim=-1)
    values = torch.eye(4)[torch.randint(0, 2, (count,), generator=r)]
    weights = torch.rand(count, generator=r)
    specific = torch.rand(count, generator=r) < 0.8
    reach = torch.where(torch.rand(count, generator=r) < 0.5, 0.9, 0.999)
    targets = torch.randint(0, 2, (count,), generator=r)
    chosen = chosen_columns(keys, values, weights, specific, reach, targets)

    def covers(i: int, k: int) -> bool:
        alike = keys[i] @ keys[k] > reach[k] and values[i] @ values[k] >= 0.9
        return bool(alike and targets[i] == targets[k])

    assert all(specific[k] for k in chosen)
    for k in range(count):
        if specific[k] and k not in chosen:
            assert any(covers(k, i) and weights[i] >= weights[k] for i in chosen)
    assert not any(covers(k, i) for i in chosen for k in chosen if weights[i] > weights[k])


def test_written_columns_make_the_student_the_teacher(
    model: NPTForCausalLM, calibration: Calibration
) -> None:
    weights = written(model, calibration, FACT)
    assert set(weights.columns) == {0, 1}
    bank = Bank(model, calibration.whitening)
    bank.publish(1, {"fact": weights})
    lesson_of = taught(model, FACT, (0, 1))
    after = answered(ModulePasses(model), lesson_of.probes, bank=bank)
    surprising = [at for at, w in lesson_of.surprise.items() if w > calibration.config.surprise]
    assert surprising
    moved = 0
    for at in surprising:
        # After the last layer only the final norm and the head remain.
        wanted = lesson_of.teacher.logits[lesson_of.teacher.at([lesson_of.teacher_position(at)])]
        before = (lesson_of.student.logits[lesson_of.student.at([at])] - wanted).norm()
        error = (after.logits[after.at([at])] - wanted).norm()
        moved += bool(error < 0.2 * before)
    assert moved >= 0.8 * len(surprising)


def test_columns_keep_the_activations_behind_their_keys(
    model: NPTForCausalLM, calibration: Calibration
) -> None:
    for index, columns in written(model, calibration, FACT).columns.items():
        keys = calibration.layers[index].whitening.key(columns.inputs)
        assert ((keys * columns.keys).sum(-1) > 0.999).all()
        torch.testing.assert_close(columns.keys.norm(dim=-1), torch.ones(len(keys)))


def test_columns_that_cannot_be_specific_are_not_written(
    model: NPTForCausalLM, calibration: Calibration
) -> None:
    own = {i: c.keys for i, c in written(model, calibration, FACT).columns.items()}
    config = replace(calibration.config, max_threshold=0.99, margin=0.05)
    result = write(model, calibration, config, taught(model, FACT, (0, 1)), own)
    kept = result.columns.get(0)
    assert kept is None or not any(torch.equal(k, o) for k in kept.keys for o in own[0])


def test_only_chosen_layers_are_written(model: NPTForCausalLM, calibration: Calibration) -> None:
    config = replace(calibration.config, layers=(1,))
    nothing = {1: calibration.layers[1].reference}
    weights = write(model, calibration, config, taught(model, FACT, (1,)), nothing)
    assert set(weights.columns) == {1}


def test_a_student_that_knows_gets_no_columns(model: NPTForCausalLM, calibration: Calibration) -> None:
    config = replace(calibration.config, surprise=1e6)
    nothing = {i: calibration.layers[i].reference for i in (0, 1)}
    assert write(model, calibration, config, taught(model, FACT, (0, 1)), nothing).columns == {}


def test_facts_are_written_alike_in_any_order_and_leave_no_trace(
    model: NPTForCausalLM, calibration: Calibration
) -> None:
    first = {f: written(model, calibration, f).to_tensors() for f in (FACT, OTHER)}
    again = {f: written(model, calibration, f).to_tensors() for f in (OTHER, FACT)}
    for fact, tensors in first.items():
        assert tensors.keys() == again[fact].keys()
        assert all(torch.equal(t, again[fact][name]) for name, t in tensors.items())
    assert all(layer.mlp.plastic is None for layer in model.model.layers)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_alpha_scales_values_alone(model: NPTForCausalLM, calibration: Calibration) -> None:
    weights = written(model, calibration, FACT)
    assert scaled(weights, 1.0) is weights
    half = scaled(weights, 0.5)
    for index, columns in weights.columns.items():
        assert torch.equal(half.columns[index].values, columns.values * 0.5)
        assert torch.equal(half.columns[index].keys, columns.keys)
