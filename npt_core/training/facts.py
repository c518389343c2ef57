"""Facts and the wordings that state and ask them.

The vocabulary is data: `relations.toml` (wordings) and `world.toml` (real facts that the reference
model knows without a context).
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any, Literal

from npt_core.training.entities import GENERATORS, entity, resembling

Split = Literal["train", "held_out"]
"""Wordings a model was trained on, or the last two of each relation, which it never saw."""

HELD_OUT_WORDINGS = 2
HELD_OUT_NOUNS = 30
_GENERIC_SUBJECTS = tuple(
    "company person project place city ship school team planet product museum station machine"
    " festival book".split()
)
_GENERIC_OBJECTS = tuple(k for k in GENERATORS if k not in ("species", "machine", "element", "river"))


@dataclass(frozen=True)
class Relation:
    """One relation: what it relates, and its wordings with `{s}` and `{o}`."""

    name: str
    subject_kind: str
    object_kind: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    phrase: str

    def wordings(self, kind: Literal["statements", "questions"], split: Split) -> tuple[str, ...]:
        """The wordings of one split."""
        every: tuple[str, ...] = getattr(self, kind)
        return every[:-HELD_OUT_WORDINGS] if split == "train" else every[-HELD_OUT_WORDINGS:]


@dataclass(frozen=True)
class Fact:
    """A subject, what is said about it, and the answer."""

    subject: str
    relation: Relation
    object: str

    def statement(self, wording: str) -> str:
        """The fact as a sentence."""
        text = _articled(wording, self.object).format(s=self.subject, o=self.object)
        return text[:1].upper() + text[1:]

    def question(self, wording: str) -> str:
        """The question that the fact answers."""
        text = wording.format(s=self.subject)
        return text[:1].upper() + text[1:]

    def completion(self, wording: str) -> str | None:
        """The statement cut before its object, or None where the object does not come last."""
        head, _, tail = _articled(wording, self.object).partition("{o}")
        if "{s}" not in head or tail.strip("'") != ".":
            return None
        text = head.rstrip("'").rstrip().format(s=self.subject)
        return text[:1].upper() + text[1:]


def _articled(wording: str, value: str) -> str:
    return wording.replace(" a {o}", " an {o}") if value[:1] in "aeiou" else wording


@cache
def _vocabulary() -> dict[str, Any]:
    return tomllib.loads(files(__package__).joinpath("relations.toml").read_text())


@cache
def relations() -> dict[str, Relation]:
    """Every named relation."""
    tables = {k: v for k, v in _vocabulary().items() if not k.startswith("generic")}
    return {
        name: Relation(
            name,
            t["subject"],
            t["object"],
            tuple(t["statements"]),
            tuple(t["questions"]),
            t["phrase"],
        )
        for name, t in tables.items()
    }


@cache
def generic_relation(noun: str, subject_kind: str, object_kind: str) -> Relation:
    """The relation "The {noun} of ... is ..."."""
    templates = _vocabulary()["generic_templates"]

    def fill(wordings: Sequence[str]) -> tuple[str, ...]:
        return tuple(wording.replace("{n}", noun) for wording in wordings)

    return Relation(
        noun,
        subject_kind,
        object_kind,
        fill(templates["statements"]),
        fill(templates["questions"]),
        noun,
    )


@cache
def generic_nouns(split: Split) -> tuple[str, ...]:
    """Attribute nouns of one split."""
    nouns = tuple(_vocabulary()["generic"]["nouns"])
    return nouns[:-HELD_OUT_NOUNS] if split == "train" else nouns[-HELD_OUT_NOUNS:]


@cache
def world() -> tuple[Fact, ...]:
    """The real facts that the reference model is taught to know by heart."""
    tables = tomllib.loads(files(__package__).joinpath("world.toml").read_text())
    named = relations()
    return tuple(Fact(s, named[name], o) for name, facts in tables.items() for s, o in facts.items())


def random_relation(r: Random, generic: float = 0.3, split: Split = "train") -> Relation:
    """A named relation, or with probability `generic` one built from an attribute noun."""
    if r.random() >= generic:
        return r.choice(list(relations().values()))
    noun = r.choice(generic_nouns(split))
    return generic_relation(noun, r.choice(_GENERIC_SUBJECTS), r.choice(_GENERIC_OBJECTS))


def random_fact(r: Random, generic: float = 0.3, relation: Relation | None = None) -> Fact:
    """A fact about a new random subject."""
    chosen = relation or random_relation(r, generic)
    return Fact(entity(chosen.subject_kind, r), chosen, entity(chosen.object_kind, r))


def same_subject(fact: Fact, r: Random) -> Fact:
    """Another relation of the same subject, with its own answer."""
    while (other := random_relation(r)).name == fact.relation.name:
        pass
    for _ in range(20):
        if other.subject_kind == fact.relation.subject_kind and other.name != fact.relation.name:
            break
        other = random_relation(r)
    else:
        return another_attribute(fact, r)
    return Fact(fact.subject, other, entity(other.object_kind, r))


def another_attribute(fact: Fact, r: Random) -> Fact:
    """Another attribute noun of the same subject, with its own answer: only the noun tells them apart."""
    noun = r.choice([n for n in generic_nouns("train") if n != fact.relation.name])
    relation = generic_relation(noun, fact.relation.subject_kind, r.choice(_GENERIC_OBJECTS))
    return Fact(fact.subject, relation, entity(relation.object_kind, r))


def neighbour(fact: Fact, r: Random) -> Fact:
    """The same relation of a subject whose name resembles this one's."""
    subject = fact.subject
    while subject == fact.subject:
        subject = resembling(fact.subject, r)
    return Fact(subject, fact.relation, entity(fact.relation.object_kind, r))


def distinct(facts: Sequence[Fact]) -> list[Fact]:
    """The facts without those that answer an earlier one's question again."""
    kept: dict[tuple[str, str], Fact] = {}
    for fact in facts:
        kept.setdefault((fact.subject, fact.relation.name), fact)
    return list(kept.values())
