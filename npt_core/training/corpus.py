"""The training text: documents that teach a model to read facts, to answer and to say it does not
know.

A document is a list of `Span`s; every answer ends with the end-of-sequence token, so that an answer
ends by itself wherever the prompt came from. Prompt forms are those of
`npt_core.prompts.PlainTemplate`.
"""

import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from random import Random

from npt_core.prompts import UNKNOWN_ANSWER, PlainTemplate
from npt_core.training.entities import entity, is_held_out
from npt_core.training.facts import (
    Fact,
    Split,
    neighbour,
    random_fact,
    relations,
    same_subject,
    world,
)

CONTEXT_WEIGHT = 0.25
"""Loss weight of sentences that invent names: they cannot be predicted, only read."""
_CONTEXT_SIZES = (1, 1, 1, 2, 2, 3, 4, 6)


@dataclass(frozen=True)
class Span:
    """A piece of text with its loss weight; `ends` adds the end-of-sequence token."""

    text: str
    weight: float = 1.0
    ends: bool = False


Document = list[Span]


@dataclass
class CorpusConfig:
    """Shares of the document kinds; natural text comes from `data` where it is present."""

    split: Split = "train"
    known: float = 0.16
    natural: float = 0.06
    chained: float = 0.0
    data: Path | None = None
    _texts: list[str] = field(default_factory=list, repr=False)

    def natural_texts(self) -> list[str]:
        """Encyclopedia leads, without the acceptance names; empty where there is no data."""
        path = self.data / "wiki-leads.jsonl.xz" if self.data else None
        if path and path.exists() and not self._texts:
            with lzma.open(path, "rt", encoding="utf-8") as lines:
                texts = (json.loads(line)["text"] for line in lines)
                self._texts.extend(t for t in texts if not is_held_out(t))
        return self._texts


def documents(seed: int, config: CorpusConfig) -> Iterator[Document]:
    """Endless documents; the same seed gives the same ones."""
    r = Random(seed)
    texts = config.natural_texts()
    while True:
        kind = r.random()
        if texts and kind < config.natural:
            yield _natural(r, texts)
        elif kind < config.natural + config.known:
            yield _from_memory(r, config.split)
        elif kind < config.natural + config.known + config.chained:
            yield _chained(r, config.split)
        else:
            yield _reading(r, config.split)


def text_of(document: Document) -> str:
    """A document as plain text, without special tokens."""
    return "".join(span.text for span in document)


def _natural(r: Random, texts: list[str]) -> Document:
    text = r.choice(texts)
    start = r.randrange(max(1, len(text) - 400))
    return [Span(text[start : start + 600], weight=0.5)]


def _from_memory(r: Random, split: Split) -> Document:
    """Questions without a context: known facts are answered, others are not."""
    lines: Document = []
    for _ in range(r.randint(2, 6)):
        roll = r.random()
        if roll < 0.62:
            lines += _line(r, r.choice(world()), split, first=not lines)
        else:
            other = neighbour(r.choice(world()), r) if roll < 0.72 else random_fact(r)
            fact = _by_heart().get(_question_of(other))
            known = fact is not None
            lines += _line(r, fact or other, split, known=known, first=not lines)
    return lines


def _question_of(fact: Fact) -> tuple[str, str]:
    return fact.subject, fact.relation.name


@cache
def _by_heart() -> dict[tuple[str, str], Fact]:
    """What is never answered with not knowing, whoever asks."""
    return {_question_of(fact): fact for fact in world()}


def _reading(r: Random, split: Split) -> Document:
    """A context of facts, then questions about them, about neighbours and about nothing in it."""
    facts = _context_facts(r)
    separator = "\n" if r.random() < 0.8 else " "
    label = "Context: " if r.random() < 0.9 else ""
    sentences = [f.statement(r.choice(f.relation.wordings("statements", split))) for f in facts]
    spans = [Span(label, 0.0), Span(" ".join(sentences), CONTEXT_WEIGHT), Span(separator)]
    first = True
    for _ in range(r.randint(2, 4) + len(facts)):
        spans += _context_line(r, facts, split, separator, first)
        first = False
    return [s for s in spans if s.text]


def _chained(r: Random, split: Split) -> Document:
    """Two facts, the second about the answer of the first, and a question that needs both."""
    named = list(relations().values())
    first = random_fact(r, relation=r.choice([x for x in named if x.object_kind in ("person", "company")]))
    follows = [x for x in named if x.subject_kind == first.relation.object_kind]
    relation = r.choice(follows)
    second = Fact(first.object, relation, entity(relation.object_kind, r))
    facts = [first, second, random_fact(r)]
    facts = list({_question_of(f): f for f in reversed(facts)}.values())  # the third may ask what they do
    r.shuffle(facts)
    sentences = [f.statement(r.choice(f.relation.wordings("statements", split))) for f in facts]
    through = Fact(f"the {first.relation.phrase} of {first.subject}", second.relation, second.object)
    spans = [Span("Context: ", 0.0), Span(" ".join(sentences), CONTEXT_WEIGHT), Span("\n")]
    spans += _line(r, through, split)
    for fact in (first, second):
        spans += _line(r, fact, split, first=False)
    return spans


def _context_facts(r: Random) -> list[Fact]:
    facts: list[Fact] = []
    for _ in range(r.choice(_CONTEXT_SIZES)):
        roll = r.random()
        if facts and roll < 0.15:
            facts.append(same_subject(r.choice(facts), r))
        elif facts and roll < 0.25:
            facts.append(neighbour(r.choice(facts), r))
        elif roll < 0.35:
            old = r.choice(world())  # the context wins over what is known by heart
            facts.append(Fact(old.subject, old.relation, random_fact(r, relation=old.relation).object))
        else:
            facts.append(random_fact(r))
    return list({_question_of(f): f for f in facts}.values())


def _context_line(r: Random, facts: list[Fact], split: Split, separator: str, first: bool) -> Document:
    line = partial(_line, r, split=split, first=first, separator=separator)
    roll = r.random()
    given = {_question_of(f): f for f in facts}
    # The first line is about the context: so the model, asked to write a question itself, asks about it.
    if first or roll < 0.80:
        return line(r.choice(facts))
    if roll < 0.96:
        near = r.choice((neighbour, neighbour, same_subject))
        other = near(r.choice(facts), r) if roll < 0.92 else random_fact(r)
        # The context wins over what is known by heart; only what is neither is not known.
        found = (_by_heart() | given).get(_question_of(other))
        return line(found or other, known=found is not None)
    return line(r.choice([f for f in world() if _question_of(f) not in given]))


def _line(
    r: Random,
    fact: Fact,
    split: Split,
    known: bool = True,
    first: bool = True,
    separator: str = "\n",
) -> Document:
    """One prompt with its answer, in one of the forms a user types."""
    lead = "" if first else "\n"
    if known and r.random() < 0.35:
        wording = r.choice(fact.relation.wordings("statements", split))
        return [Span(lead + fact.statement(wording), ends=True)]
    question = fact.question(r.choice(fact.relation.wordings("questions", split)))
    forms = PlainTemplate.question_forms(question)
    if separator == " ":
        forms = [PlainTemplate.inline_block(question), *forms]
    answer = f" {fact.object}." if known else f" {UNKNOWN_ANSWER}"
    # An unknown fact's question invents a name, as a context does.
    return [Span(lead + r.choice(forms), 1.0 if known else 0.5), Span(answer, ends=True)]
