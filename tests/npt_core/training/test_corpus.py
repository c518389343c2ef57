from __future__ import annotations

import json
import lzma
import re
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest

from npt_core.prompts import UNKNOWN_ANSWER
from npt_core.training import corpus
from npt_core.training.corpus import CorpusConfig, Document, documents, text_of
from npt_core.training.entities import HELD_OUT_TERMS, is_held_out
from npt_core.training.facts import Fact, world

COUNT = 3000


@dataclass
class Written:
    """One document, the facts that its writer stated or asked about, and what it answered."""

    document: Document
    stated: list[tuple[Fact, str]] = field(default_factory=list)
    asked: list[tuple[Fact, bool]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return text_of(self.document)


@pytest.fixture(scope="module")
def corpus_of_all_kinds() -> list[Written]:
    """Documents with a record of the facts behind them."""
    made, current = list[Written](), Written([])
    statement, question, line = Fact.statement, Fact.question, corpus._line

    def stating(self: Fact, wording: str) -> str:
        current.stated.append((self, wording))
        return statement(self, wording)

    def asking(self: Fact, wording: str) -> str:
        current.stated.append((self, wording))
        return question(self, wording)

    def lining(r: Random, fact: Fact, split: Any, known: bool = True, **more: Any) -> Document:
        current.asked.append((fact, known))
        return line(r, fact, split, known, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fact, "statement", stating)
        patch.setattr(Fact, "question", asking)
        patch.setattr(corpus, "_line", lining)
        source = documents(11, CorpusConfig(chained=0.1))
        for _ in range(COUNT):
            current.document = next(source)
            made.append(current)
            current = Written([])
    return made


def test_no_document_holds_a_held_out_term(corpus_of_all_kinds: list[Written]) -> None:
    for written in corpus_of_all_kinds:
        assert not is_held_out(written.text)
    names = [t for t in HELD_OUT_TERMS if len(t) > 5]
    anywhere = re.compile("|".join(names), re.IGNORECASE)
    assert not any(anywhere.search(w.text) for w in corpus_of_all_kinds)


def test_held_out_wordings_never_occur(corpus_of_all_kinds: list[Written]) -> None:
    for written in corpus_of_all_kinds:
        for fact, wording in written.stated:
            relation = fact.relation
            assert wording in (*relation.wordings("statements", "train"),
                               *relation.wordings("questions", "train"))  # fmt: skip
            hidden = [
                w.format(s=fact.subject, o=fact.object)
                for kind in ("statements", "questions")
                for w in relation.wordings(kind, "held_out")  # type: ignore[arg-type]
            ]
            assert not any(h[:1].upper() + h[1:] in written.text for h in hidden)


def test_the_held_out_split_writes_only_what_training_never_saw() -> None:
    trained = {text_of(d) for d in islice(documents(3, CorpusConfig()), 200)}
    for document in islice(documents(3, CorpusConfig(split="held_out")), 200):
        assert text_of(document) not in trained


def test_the_same_seed_gives_the_same_documents() -> None:
    first, again, other = (list(islice(documents(seed, CorpusConfig()), 50)) for seed in (5, 5, 6))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    "form",
    [
        r"^Context: .+\n",
        r"\nQuestion: [^\n]+\?\nAnswer: ",
        r"\nUser: [^\n]+\?\nAssistant: ",
        r" Question: [^\n]+\? Answer: ",
        r"\n[A-Z](?!uestion:|ser:)[^\n:]*\? [^\n]+\.(\n|$)",
    ],
    ids=["context", "block", "chat", "inline", "bare"],
)
def test_every_form_a_user_types_occurs_often(corpus_of_all_kinds: list[Written], form: str) -> None:
    hits = sum(bool(re.search(form, w.text)) for w in corpus_of_all_kinds)
    assert hits > 0.01 * COUNT


def test_every_answer_ends_with_the_end_token(corpus_of_all_kinds: list[Written]) -> None:
    for written in corpus_of_all_kinds:
        ended = [s.text for s in written.document if s.ends]
        assert len(ended) == len(written.asked)
        assert all(text.endswith((".", ".'")) for text in ended)


def test_what_was_not_given_is_answered_with_not_knowing(
    corpus_of_all_kinds: list[Written],
) -> None:
    unknown = [s for w in corpus_of_all_kinds for s in w.document if UNKNOWN_ANSWER in s.text]
    questions = sum(len(w.asked) for w in corpus_of_all_kinds)
    assert 0.05 < len(unknown) / questions < 0.5
    for written in corpus_of_all_kinds:
        denied = sum(not known for _, known in written.asked)
        assert written.text.count(UNKNOWN_ANSWER) == denied


def key(fact: Fact) -> tuple[str, str]:
    return fact.subject, fact.relation.name


def test_an_answer_is_never_against_the_context(corpus_of_all_kinds: list[Written]) -> None:
    """What a document says about one subject and relation is one thing."""
    for written in corpus_of_all_kinds:
        said: dict[tuple[str, str], str] = {}
        for fact, wording in written.stated:
            if "{o}" in wording:
                assert said.setdefault(key(fact), fact.object) == fact.object
        for fact, known in written.asked:
            if known:
                assert said.setdefault(key(fact), fact.object) == fact.object
            else:
                assert key(fact) not in said


def test_what_is_known_by_heart_is_never_denied(corpus_of_all_kinds: list[Written]) -> None:
    known = {key(f) for f in world()}
    for written in corpus_of_all_kinds:
        assert not [fact for fact, given in written.asked if not given and key(fact) in known]


def test_the_known_world_is_asked_without_a_context(corpus_of_all_kinds: list[Written]) -> None:
    without = [w for w in corpus_of_all_kinds if "Context:" not in w.text]
    asked = {key(f) for w in without for f, known in w.asked if known}
    assert len(asked & {key(f) for f in world()}) > 0.5 * len(world())


def test_invented_names_weigh_less_than_answers(corpus_of_all_kinds: list[Written]) -> None:
    for written in corpus_of_all_kinds:
        assert all(0 <= s.weight <= 1 for s in written.document)
        answers = [s for s in written.document if s.ends]
        assert all(s.weight == 1 for s in answers)


def test_chained_documents_ask_for_two_facts_at_once() -> None:
    config = CorpusConfig(known=0.0, natural=0.0, chained=1.0)
    for document in islice(documents(1, config), 100):
        assert "the " in text_of(document).lower()
        assert len([s for s in document if s.ends]) == 3


def test_natural_text_is_used_where_there_is_data_without_held_out_names(tmp_path: Path) -> None:
    lines = ["Rivers run to the sea. " * 30, "The Zephyr was a train. " * 30]
    with lzma.open(tmp_path / "wiki-leads.jsonl.xz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in lines)
    config = CorpusConfig(data=tmp_path, natural=0.5)
    assert config.natural_texts() == lines[:1]
    texts = [text_of(d) for d in islice(documents(1, config), 200)]
    assert 50 < sum("run to the sea" in t for t in texts) < 150
    assert not any("Zephyr" in t for t in texts)


def test_without_data_there_is_no_natural_text(tmp_path: Path) -> None:
    assert CorpusConfig(data=tmp_path).natural_texts() == []
    assert CorpusConfig().natural_texts() == []
