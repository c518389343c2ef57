from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npt_core.training.entities import GENERATORS, is_held_out
from npt_core.training.facts import (
    Relation,
    distinct,
    generic_nouns,
    generic_relation,
    neighbour,
    random_fact,
    relations,
    same_subject,
    world,
)

seeds = st.integers(0, 2**64)
EVERY = [*relations().values(), generic_relation("motto", "city", "title")]


def test_there_are_at_least_thirty_relations() -> None:
    assert len(relations()) >= 30


@pytest.mark.parametrize("relation", EVERY, ids=lambda r: r.name)
def test_a_relation_has_enough_wordings_in_training_and_some_held_out(relation: Relation) -> None:
    for kind, least in (("statements", 6), ("questions", 4)):
        trained, held = relation.wordings(kind, "train"), relation.wordings(kind, "held_out")  # type: ignore[arg-type]
        assert len(trained) >= least, kind
        assert held
        every = [*trained, *held]
        assert len(set(every)) == len(every)


@pytest.mark.parametrize("relation", EVERY, ids=lambda r: r.name)
def test_every_wording_names_what_it_must(relation: Relation) -> None:
    for statement in relation.statements:
        assert statement.count("{s}") == statement.count("{o}") == 1
        assert statement.endswith((".", ".'"))
    for question in relation.questions:
        assert question.count("{s}") == 1
        assert "{o}" not in question
        assert question.endswith("?")
    assert not any(is_held_out(w) for w in (*relation.statements, *relation.questions))


@pytest.mark.parametrize("relation", relations().values(), ids=lambda r: r.name)
def test_a_relation_relates_known_kinds(relation: Relation) -> None:
    assert {relation.subject_kind, relation.object_kind} - {"title"} <= set(GENERATORS)


@pytest.mark.parametrize("relation", EVERY, ids=lambda r: r.name)
def test_a_sentence_can_be_completed(relation: Relation) -> None:
    """At least one statement in training ends with its object: completions are trained."""
    fact = random_fact(Random(0), relation=relations()["ceo"])
    fact = type(fact)("Borduria", relation, "Szohod")
    heads = [fact.completion(w) for w in relation.wordings("statements", "train")]
    assert any(heads)
    for wording, head in zip(relation.wordings("statements", "train"), heads, strict=True):
        assert head is None or fact.statement(wording).startswith(head)
        assert head is None or "Szohod" not in head


def test_attribute_nouns_of_the_splits_differ() -> None:
    assert not set(generic_nouns("train")) & set(generic_nouns("held_out"))
    assert len(set(generic_nouns("train"))) == len(generic_nouns("train"))


def test_the_known_world_is_consistent_and_has_no_acceptance_name() -> None:
    answers: dict[tuple[str, str], str] = {}
    for fact in world():
        assert answers.setdefault((fact.subject, fact.relation.name), fact.object) == fact.object
        assert not is_held_out(f"{fact.subject} {fact.object}")
    assert len(answers) == len(world())


@settings(deadline=None)
@given(seeds)
def test_a_neighbour_has_the_same_relation_and_another_subject(seed: int) -> None:
    r = Random(seed)
    fact = random_fact(r)
    other = neighbour(fact, r)
    assert other.relation == fact.relation
    assert other.subject != fact.subject


@settings(deadline=None)
@given(seeds)
def test_the_same_subject_gets_another_relation(seed: int) -> None:
    r = Random(seed)
    fact = random_fact(r)
    other = same_subject(fact, r)
    assert other.subject == fact.subject
    assert other.relation.name != fact.relation.name
    assert other.relation.subject_kind == fact.relation.subject_kind


@settings(deadline=None)
@given(seeds)
def test_a_fact_is_written_as_sentences(seed: int) -> None:
    fact = random_fact(Random(seed))
    for wording in fact.relation.statements:
        text = fact.statement(wording)
        assert fact.object.casefold() in text.casefold()
        assert fact.subject.casefold() in text.casefold()
        assert text[:1] == text[:1].upper()
        assert "{" not in text
    for wording in fact.relation.questions:
        assert "{" not in fact.question(wording)


def test_an_article_fits_its_noun() -> None:
    relation = Relation("job", "person", "profession", ("{s} is a {o}.",), ("?",), "job")
    fact = random_fact(Random(0), relation=relations()["ceo"])
    assert type(fact)("Ada", relation, "actor").statement("{s} is a {o}.") == "Ada is an actor."
    assert type(fact)("Ada", relation, "poet").statement("{s} is a {o}.") == "Ada is a poet."


@pytest.mark.parametrize("relation", EVERY, ids=lambda r: r.name)
def test_no_held_out_wording_is_part_of_one_in_training(relation: Relation) -> None:
    for kind in ("statements", "questions"):
        for hidden in relation.wordings(kind, "held_out"):  # type: ignore[arg-type]
            seen = relation.wordings(kind, "train")  # type: ignore[arg-type]
            assert not [w for w in seen if hidden.lower() in w.lower()]


def test_distinct_keeps_one_answer_to_a_question_in_the_order_given() -> None:
    r = Random(0)
    first = random_fact(r)
    again = type(first)(first.subject, first.relation, "other")
    second = random_fact(r)
    kept = distinct([first, second, again])
    assert [f.subject for f in kept] == [first.subject, second.subject]
    assert kept[0] == first
