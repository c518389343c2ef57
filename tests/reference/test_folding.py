"""Facts folded into the weights of the checkpoint that ships, as the service does it."""

from __future__ import annotations

import pytest
import torch

from npt_core.bank import Bank
from npt_core.consolidation import FoldBars, FoldRefused, WriteRequest
from npt_core.consolidation.probes import bare
from npt_core.loading import Runtime
from tests.reference.conftest import ACCEPTANCE, Ask, Written

FOLDED = ("ceo", "capital")


def requests(written: Written, names: tuple[str, ...]) -> dict[str, tuple[WriteRequest, object]]:
    sentences = {a.name: a.fact for a in ACCEPTANCE}
    return {name: (WriteRequest(sentences[name]), written[name].weights) for name in names}


def test_folded_facts_answer_from_the_weights_and_a_rollback_is_exact(
    runtime: Runtime, bank: Bank, written: Written, ask: Ask
) -> None:
    chosen = [a for a in ACCEPTANCE if a.name in FOLDED]
    prompts = [a.question for a in chosen]
    bank.publish(1, {name: written[name].weights for name in FOLDED})
    in_bank = ask(prompts)
    deltas = runtime.fold_writer.deltas({name: written[name].weights for name in FOLDED})
    bank.publish(2, {}, FOLDED, deltas)
    assert bank.num_columns() == 0
    assert ask(prompts) == [bare(a.answer) for a in chosen] == in_bank
    ids = torch.tensor([runtime.template.encode(prompts[0])])
    with torch.no_grad():
        before = runtime.model(ids, weights_version=1).logits
        bank.publish(3, {name: written[name].weights for name in FOLDED}, (), {})
        assert torch.equal(runtime.model(ids, weights_version=3).logits, before)


def test_fold_is_measured_and_refused_where_a_bar_is_missed(runtime: Runtime, written: Written) -> None:
    facts, others = requests(written, FOLDED), [*requests(written, ("weight",)).values()]
    deltas = runtime.fold_writer.deltas({name: written[name].weights for name in FOLDED})
    examine = runtime.fold_writer.examine
    with pytest.raises(FoldRefused, match=r"answers that stay, .* is below 1") as refused:
        examine(deltas, facts, others, FoldBars(drift=0.1, locality=1.0))  # type: ignore[arg-type]
    report = refused.value.report
    assert (report.facts, report.others, report.recall, report.others_recall) == (2, 1, 1.0, 1.0)
    assert report.columns == sum(written[name].weights.num_columns for name in FOLDED)
    assert FoldBars().locality <= report.locality < 1
    assert 0 < report.drift <= 0.1
    with pytest.raises(FoldRefused, match="predicted drift") as refused:
        examine(deltas, facts, others, FoldBars(drift=report.drift / 2))  # type: ignore[arg-type]
    assert refused.value.report.recall == 0.0  # not measured
