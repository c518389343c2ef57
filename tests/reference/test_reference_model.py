"""What the checkpoint that ships promises, on facts that no training text names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from npt_core.bank import Bank
from npt_core.consolidation import (
    ConsolidationError,
    InvalidRequest,
    NotRecalled,
    Question,
    Step,
    UnreadableFact,
    WriteRequest,
)
from npt_core.consolidation.probes import bare, trimmed
from npt_core.generation import right_padded
from npt_core.loading import Runtime, with_parameters
from npt_core.prompts import UNKNOWN_ANSWER
from npt_core.training.facts import world
from tests.reference.conftest import ACCEPTANCE, REFERENCE, Acceptance, Ask, Written

UNKNOWN = bare(UNKNOWN_ANSWER)
EVERY_PROMPT = [form for a in ACCEPTANCE for form in a.forms()]


@torch.no_grad()
def logits(runtime: Runtime, version: int | None = None) -> Tensor:
    """The logits `[B, T, vocab]` of every acceptance prompt, answered and not."""
    template = runtime.template
    answered = [template.answered(p, [], "Dr. Sarah Chen.") for p in EVERY_PROMPT]
    ids = right_padded([template.encode(p) for p in (*EVERY_PROMPT, *answered)])
    found: Tensor = runtime.model(ids, weights_version=version).logits
    return found


def weights_of(runtime: Runtime) -> dict[str, Tensor]:
    return {name: w.clone() for name, w in runtime.model.state_dict().items()}


def test_a_fact_is_read_from_its_context_in_every_form(
    runtime: Runtime, bank: Bank, ask: Ask, acceptance: Acceptance
) -> None:
    prompts = [runtime.template.with_context(p, [acceptance.fact]) for p in acceptance.forms()]
    assert ask(prompts) == [bare(acceptance.answer)] * len(prompts)


def test_a_fact_is_read_among_others(runtime: Runtime, bank: Bank, ask: Ask, acceptance: Acceptance) -> None:
    prompt = runtime.template.with_context(acceptance.question, [a.fact for a in ACCEPTANCE])
    assert ask([prompt]) == [bare(acceptance.answer)]


def test_a_fact_is_read_in_a_chat(runtime: Runtime, bank: Bank, ask: Ask, acceptance: Acceptance) -> None:
    messages = [
        {"role": "system", "content": acceptance.fact},
        {"role": "user", "content": acceptance.question},
    ]
    assert ask([runtime.template.chat(messages)]) == [bare(acceptance.answer)]


def test_before_it_is_told_the_model_says_that_it_does_not_know(
    bank: Bank, ask: Ask, acceptance: Acceptance
) -> None:
    questions = acceptance.forms()[:-1]  # a sentence to complete is not a question
    assert ask(questions) == [UNKNOWN] * len(questions)


def test_a_consolidated_fact_is_recalled_in_every_form_without_context(
    bank: Bank, ask: Ask, written: Written, acceptance: Acceptance
) -> None:
    bank.publish(1, {"fact": written[acceptance.name].weights})
    prompts = acceptance.forms()
    assert ask(prompts) == [bare(acceptance.answer)] * len(prompts)


def test_all_facts_together_are_recalled_by_bare_questions(bank: Bank, ask: Ask, written: Written) -> None:
    bank.publish(1, written.every())
    assert ask([a.question for a in ACCEPTANCE]) == [bare(a.answer) for a in ACCEPTANCE]


def test_subjects_that_look_alike_stay_unknown(
    bank: Bank, ask: Ask, written: Written, acceptance: Acceptance
) -> None:
    bank.publish(1, {"fact": written[acceptance.name].weights})
    assert ask(acceptance.look_alikes) == [UNKNOWN] * len(acceptance.look_alikes)


def test_other_facts_stay_as_they_were(bank: Bank, ask: Ask, written: Written) -> None:
    known = [f.question(f.relation.questions[0]) for f in world()[::7]]
    before = ask(known)
    bank.publish(1, written.every())
    assert ask(known) == before


def test_a_retracted_fact_is_forgotten_bit_for_bit(
    runtime: Runtime, bank: Bank, ask: Ask, written: Written, acceptance: Acceptance
) -> None:
    before = logits(runtime)
    bank.publish(1, {"fact": written[acceptance.name].weights})
    with_fact = logits(runtime)
    assert not torch.equal(with_fact, before)
    bank.publish(2, {}, ["fact"])
    assert torch.equal(logits(runtime), before)
    assert torch.equal(logits(runtime, version=1), with_fact)
    assert ask([acceptance.question]) == [UNKNOWN]
    bank.publish(3, {"fact": written[acceptance.name].weights})  # a rollback to version 1
    assert torch.equal(logits(runtime), with_fact)


def test_a_retracted_fact_leaves_the_others_bit_for_bit(
    runtime: Runtime, bank: Bank, written: Written
) -> None:
    first, *others = (a.name for a in ACCEPTANCE)
    bank.publish(1, {name: written[name].weights for name in others})
    without = logits(runtime)
    bank.publish(2, {first: written[first].weights})
    bank.publish(3, {}, [first])
    assert torch.equal(logits(runtime), without)


def test_writes_commute(runtime: Runtime, bank: Bank, written: Written) -> None:
    """Made in the other order, with the first published meanwhile, and published in that order."""
    names = [a.name for a in ACCEPTANCE[:2]]
    bank.publish(1, {names[0]: written[names[0]].weights})
    bank.publish(2, {names[1]: written[names[1]].weights})
    wanted = logits(runtime)
    other = Bank(runtime.model, runtime.consolidator.calibration.whitening).attach()
    for version, a in enumerate(reversed(ACCEPTANCE[:2]), start=1):
        again = runtime.consolidator.consolidate(WriteRequest(a.fact)).weights
        tensors = written[a.name].weights.to_tensors()
        assert again.to_tensors().keys() == tensors.keys()
        assert all(torch.equal(t, tensors[n]) for n, t in again.to_tensors().items())
        other.publish(version, {a.name: again})
    assert torch.equal(logits(runtime), wanted)


def test_a_report_says_what_was_measured(written: Written, acceptance: Acceptance) -> None:
    report = written[acceptance.name].report
    assert report.recall_before == 0.0
    assert report.recall_after >= 0.99
    assert report.teacher_recall > 0.0
    assert report.locality >= 0.99
    assert report.answer == trimmed(acceptance.answer)
    assert report.columns == written[acceptance.name].weights.num_columns > 0
    assert set(report.timings) == {"study", "write", "verify"}


def test_weights_survive_their_file_format(
    runtime: Runtime, bank: Bank, written: Written, acceptance: Acceptance
) -> None:
    weights = written[acceptance.name].weights
    bank.publish(1, {"fact": weights})
    before = logits(runtime)
    again = type(weights).from_tensors(weights.to_tensors())
    bank.publish(2, {"fact": again}, ["fact"])
    assert torch.equal(logits(runtime), before)


def test_consolidation_touches_neither_weights_nor_what_is_served(runtime: Runtime) -> None:
    before, answers, version = weights_of(runtime), logits(runtime), runtime.bank.version
    runtime.consolidator.consolidate(WriteRequest("The capital of Borduria is Szohod."))
    assert all(torch.equal(w, before[name]) for name, w in weights_of(runtime).items())
    assert torch.equal(logits(runtime), answers)
    assert runtime.bank.version == version
    assert [layer.mlp.plastic for layer in runtime.model.model.layers] == runtime.bank.layers
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in runtime.model.modules())


def test_the_callers_questions_are_used(runtime: Runtime, bank: Bank, ask: Ask) -> None:
    question = Question("What is the capital of Borduria?", "Szohod")
    request = WriteRequest("The capital of Borduria is Szohod.", questions=(question,))
    steps: list[Step] = []
    runtime.consolidator.tell_steps(steps.append)
    made = runtime.consolidator.consolidate(request)
    runtime.consolidator.tell_steps(lambda _: None)
    assert steps == list(Step)[:-1] * made.report.attempts
    bank.publish(1, {"fact": made.weights})
    assert ask([question.question]) == ["szohod"]


def test_modulation_is_told_token_by_token(runtime: Runtime, bank: Bank) -> None:
    ids = runtime.template.encode("Who is the CEO of TechCorp?")
    found = runtime.modulation_strengths(ids, 0, None)
    assert runtime.modulates
    assert len(found) == len(ids)
    assert min(found) > 0.0
    assert runtime.modulation_strengths(ids, 0, 0.0) == [0.0] * len(ids)


def test_a_ridge_update_is_made_of_factors(runtime: Runtime, bank: Bank, ask: Ask) -> None:
    fact = ACCEPTANCE[0]
    lenient = with_parameters(runtime, min_locality=0.8)
    made = lenient.consolidate(WriteRequest(fact.fact, strategy="ridge"))
    assert {site for _, site in made.weights.factors} == {"down_proj"}
    bank.publish(1, {"fact": made.weights})
    assert ask([fact.question]) == [bare(fact.answer)]


def test_a_ridge_update_that_disturbs_others_is_refused(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = with_parameters(runtime)
    monkeypatch.setattr(writer, "changed_answers", lambda _trial: (0.5, 0.1))
    with pytest.raises(NotRecalled) as refused:
        writer.consolidate(WriteRequest(ACCEPTANCE[0].fact, strategy="ridge"))
    assert refused.value.report.locality == 0.5


def test_the_original_rule_is_measured_and_reported(runtime: Runtime) -> None:
    request = WriteRequest(ACCEPTANCE[0].fact, strategy="modulation", preset="factual_recall")
    made = runtime.consolidator.consolidate(request)
    assert {site for _, site in made.weights.factors} == {"gate_proj"}
    assert made.report.strategy == "modulation"
    assert 0.0 <= made.report.recall_after <= 1.0


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("fact", WriteRequest("")),
        ("fact", WriteRequest("   ")),
        ("fact", WriteRequest("a" * 10_000)),
        ("fact", WriteRequest("The capital of Borduria is Szohod. " * 300)),
        ("strategy", WriteRequest("A b.", strategy="magic")),  # type: ignore[arg-type]
        ("alpha", WriteRequest("A b.", alpha=2.0)),
        ("layers", WriteRequest("A b.", layers=(99,))),
        ("preset", WriteRequest("A b.", preset="best")),  # type: ignore[arg-type]
        ("token_idx", WriteRequest("A b.", strategy="modulation", token_idx=999)),
    ],
    ids=["empty", "blank", "10000", "long", "strategy", "alpha", "layers", "preset", "token"],
)
def test_a_wrong_request_is_refused_by_its_field(
    runtime: Runtime, field: str, request_: WriteRequest
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        runtime.consolidator.consolidate(request_)
    assert refused.value.field == field


@pytest.mark.parametrize(
    "fact",
    ["??? !!! ...", "qx zzv 漢字 wq 🙂", "Yes.", "xkcd " * 20],
    ids=["signs", "scripts", "word", "noise"],
)
def test_a_fact_that_cannot_be_read_is_refused_and_changes_nothing(runtime: Runtime, fact: str) -> None:
    before = logits(runtime)
    with pytest.raises(UnreadableFact) as refused:
        runtime.consolidator.consolidate(WriteRequest(fact))
    assert isinstance(refused.value, ConsolidationError)
    assert refused.value.report.probes["training"] == 0
    assert torch.equal(logits(runtime), before)


def test_the_checkpoint_is_small_enough_to_ship() -> None:
    size = sum(path.stat().st_size for path in REFERENCE.rglob("*") if path.is_file())
    assert size <= 40 * 2**20


def test_the_checkpoint_has_at_least_eight_million_parameters(runtime: Runtime) -> None:
    assert sum(p.numel() for p in runtime.model.parameters()) >= 8_000_000
