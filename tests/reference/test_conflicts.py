"""Contradictions on real sentences: found by keys and names, and nothing else is taken for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import pytest

from npt_core.bank import Bank
from npt_core.consolidation import Consolidated, WriteRequest
from npt_core.loading import Runtime
from service.conflicts import Overlap, disagreeing, overlap
from service.ledger import Fact
from tests.reference.conftest import ACCEPTANCE, Written

CEO, WEIGHT, CODENAME = (
    next(a.fact for a in ACCEPTANCE if a.name == n) for n in ("ceo", "weight", "codename")
)
STORED = {a.name: a.fact for a in ACCEPTANCE}


@pytest.fixture
def filled(runtime: Runtime, written: Written) -> Bank:
    """A bank beside the model, with every acceptance fact that the model learned."""
    bank = Bank(runtime.model, runtime.consolidator.calibration.whitening)
    bank.publish(1, {name: written[name].weights for name in STORED})
    return bank


@pytest.fixture(scope="module")
def consolidated(runtime: Runtime) -> Callable[[str], Consolidated]:
    return cache(lambda sentence: runtime.consolidator.consolidate(WriteRequest(sentence)))


def found(bank: Bank, fresh: Consolidated, written: Written) -> Overlap:
    def facts(names: Sequence[str]) -> dict[str, Fact]:
        return {n: Fact(n, 1, {"fact": STORED[n]}, written[n].report.as_dict(), "", "") for n in names}

    return overlap(fresh, bank.matches(fresh.asked), facts)


@pytest.mark.parametrize(
    ("sentence", "contradicted", "restated"),
    [
        ("The CEO of TechCorp is Marcus Reed.", ("ceo",), ()),
        ("The element Trilium has an atomic weight of 412.", ("weight",), ()),
        ("The CEO of TechCorp is Dr. Sarah Chen.", (), ("ceo",)),
        ("The CEO of MedCorp is Linda Hayes.", (), ()),
        ("The codename for project Kronos is 'Starfall'.", (), ()),
        ("The headquarters of TechCorp is in Berlin.", (), ()),
    ],
)
def test_what_a_new_fact_contradicts(
    consolidated: Callable[[str], Consolidated],
    filled: Bank,
    written: Written,
    sentence: str,
    contradicted: tuple[str, ...],
    restated: tuple[str, ...],
) -> None:
    assert found(filled, consolidated(sentence), written) == Overlap(contradicted, restated)


def test_two_facts_of_a_batch_that_disagree_are_found(consolidated: Callable[[str], Consolidated]) -> None:
    sentences = [CEO, "The headquarters of TechCorp is in Berlin.", "The CEO of TechCorp is Marcus Reed."]
    fresh = [consolidated(sentence) for sentence in sentences]
    assert disagreeing(fresh, sentences) == (0, 2)
    assert disagreeing(fresh[:2], sentences[:2]) is None


def test_facts_of_a_batch_are_recalled_together_unless_they_disagree(
    runtime: Runtime, written: Written, consolidated: Callable[[str], Consolidated]
) -> None:
    whole = [written[name] for name in STORED]
    assert runtime.consolidator.recall_together(whole) == [1.0] * len(whole)
    assert runtime.consolidator.disturbed(whole) == {}
    other = consolidated("The CEO of TechCorp is Marcus Reed.")
    refused = runtime.consolidator.disturbed([written["weight"], written["ceo"], other])
    assert refused
    assert 0 not in refused
    assert all(error.report.recall_after < 1.0 for error in refused.values())


def test_the_question_of_a_fact_fires_its_columns_alone(
    runtime: Runtime, filled: Bank, written: Written
) -> None:
    for acceptance in ACCEPTANCE:
        keys = runtime.consolidator.question_keys(acceptance.question, filled, 1)
        assert [m.fact for m in filled.matches(keys) if m.fires] == [acceptance.name]
