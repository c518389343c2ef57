from __future__ import annotations

from collections import Counter

import pytest

from npt_core.evaluation.config import EvaluationConfig
from npt_core.evaluation.exam import (
    FAMILY,
    PARAPHRASE,
    RECALL,
    Examiner,
    Item,
    clustered_facts,
    exam,
    questions,
    random_facts,
    says,
    spread,
    statements,
)
from npt_core.evaluation.speaker import Speaker
from npt_core.training.facts import Fact, world
from tests.npt_core.tiny import plain_template

TEMPLATE = plain_template()


def identity(fact: Fact) -> tuple[str, str]:
    return fact.subject, fact.relation.name


def test_facts_are_new_distinct_and_reproducible() -> None:
    facts = random_facts(60, "0")
    assert len({identity(f) for f in facts}) == 60
    assert not {identity(f) for f in facts} & {identity(f) for f in world()}
    assert facts == random_facts(60, "0")
    assert facts[:5] != random_facts(60, "1")[:5]


def test_fewer_facts_are_the_first_of_more() -> None:
    assert statements(random_facts(5, "0"), "x") == statements(random_facts(5, "0"), "x")


def test_clustered_facts_come_in_families_of_one_relation() -> None:
    facts = clustered_facts(2 * FAMILY, "0")
    assert len({identity(f) for f in facts}) == 2 * FAMILY
    assert len({f.relation.name for f in facts[:FAMILY]}) == 1


def test_questions_use_no_training_wording() -> None:
    for fact in random_facts(20, "wordings"):
        trained = {fact.question(w) for w in fact.relation.wordings("questions", "train")}
        trained |= {
            cut
            for w in fact.relation.wordings("statements", "train")
            if (cut := fact.completion(w)) is not None
        }
        asked = {item.prompt for item in questions(0, fact, TEMPLATE)}
        assert not asked & trained
        groups = Counter(item.group for item in questions(0, fact, TEMPLATE))
        assert groups[RECALL] == 3
        assert groups[PARAPHRASE] >= 3


def test_statements_are_worded_as_the_model_was_trained_to_read() -> None:
    facts = random_facts(10, "0")
    for fact, sentence in zip(facts, statements(facts, "0"), strict=True):
        worded = {fact.statement(w) for w in fact.relation.wordings("statements", "train")}
        assert sentence in worded


def test_a_sample_of_facts_reaches_from_the_first_to_the_last() -> None:
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(3, 10) == spread(3, None) == [0, 1, 2]
    assert spread(5, 1) == [0]
    paper = exam(random_facts(10, "0"), TEMPLATE, 2, "0", asked=4)
    assert {item.owner for item in paper.asked} == {0, 3, 6, 9}


def test_bystanders_are_never_about_a_taught_fact() -> None:
    facts = clustered_facts(FAMILY, "0")
    paper = exam(facts, TEMPLATE, FAMILY, "0")
    asked = {item.prompt for item in paper.asked}
    assert paper.bystanders
    assert not asked & {item.prompt for item in paper.bystanders}
    assert {item.group for item in paper.bystanders} == {
        "locality_relation",
        "locality_subject",
        "locality_unrelated",
    }


class Parrot(Speaker):
    """Answers from a table; `I don't know.` otherwise."""

    def __init__(self, table: dict[str, str]) -> None:
        object.__setattr__(self, "table", table)

    def answers(self, prompts, version=None, contexts=None):  # type: ignore[no-untyped-def]
        return [self.table.get(p, "i don't know") for p in prompts]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("oysters", "oysters", True),
        ("oysters as its height", "oysters", True),
        ("ann's", "ann", True),
        ("annex", "ann", False),
        ("12", "1", False),
        ("in oysters", "oysters", False),
        ("", "oysters", False),
    ],
)
def test_an_answer_may_go_on_after_the_object(answer: str, expected: str, right: bool) -> None:
    assert says(answer, expected) is right


def test_recall_counts_a_refused_fact_as_not_recalled() -> None:
    items = [Item(0, RECALL, "a?", "x"), Item(1, RECALL, "b?", "y"), Item(1, PARAPHRASE, "c?", "y")]
    parrot = Parrot({"a?": "x", "b?": "y", "c?": "z"})
    examiner = Examiner(parrot)
    assert examiner.recall(parrot, items) == {RECALL: 1.0, PARAPHRASE: 0.0}
    assert examiner.recall(parrot, items, refused={1}) == {RECALL: 0.5, PARAPHRASE: 0.0}


def test_locality_compares_with_the_base_and_follows_unknown_look_alikes() -> None:
    items = [
        Item(0, "near", "known?", resembles=True),
        Item(0, "near", "unknown?", resembles=True),
        Item(0, "far", "other?"),
    ]
    base, edited = Parrot({"known?": "p"}), Parrot({"known?": "q", "unknown?": "leak"})
    assert Examiner(base).locality(edited, items) == {
        "locality": pytest.approx(1 / 3),
        "near": 0.0,
        "far": 1.0,
        "unknown_kept": 0.0,
    }


@pytest.mark.parametrize(
    "wrong", [{"counts": ()}, {"counts": (10, 1)}, {"counts": (0,)}, {"seeds": ()}, {"batch": 0}]
)
def test_sizes_that_mean_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must be|start at 1"):
        EvaluationConfig(**wrong)  # type: ignore[arg-type]
