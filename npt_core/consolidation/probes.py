"""Self-study: the model itself, with the fact in its context, writes questions and restatements.

A probe is a prompt with the answer that the model gives to it with the fact in context. Probes that
name the answer already in the prompt, whose answer is not taken from the fact, or that the model
does not answer the same way again (greedy, with the context), are discarded.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from npt_core.consolidation.request import Question
from npt_core.generation import Decoding, generate
from npt_core.model import NPTForCausalLM
from npt_core.prompts import UNKNOWN_ANSWER, PromptTemplate

MAX_PROBE_TOKENS = 40
NUCLEUS = 0.9
"""Sampling keeps to this much of the mass, so that names are copied and wordings still vary."""
_QUESTION = re.compile(
    r"^\s*(?:Question:|User:)?\s*(?P<question>[^?\n]{3,}\?)\s*(?:Answer:|Assistant:)?\s*(?P<answer>[^\n]+)$"
)
_NAMELIKE = re.compile(r"\b(?:[A-Z][\w'-]*[A-Za-z0-9]|\w*\d\w*)\b")


@dataclass(frozen=True)
class Probe:
    """`prompt` as a user types it, and the `answer` as the model writes it after it.

    `wording` groups the forms of one question: they are held out together.
    """

    prompt: str
    answer: str
    wording: str


@dataclass(frozen=True)
class SelfStudy:
    """The probes that passed, by use, and how many were written at all."""

    training: tuple[Probe, ...]
    held_out: tuple[Probe, ...]
    written: int


def bare(answer: str) -> str:
    """An answer for comparison: no case, no quotes, no final period."""
    return answer.strip().rstrip(".").strip("'\"” “").casefold()


def write_questions(
    model: NPTForCausalLM,
    template: PromptTemplate,
    fact: str,
    count: int,
    seed: int,
    temperature: float,
) -> tuple[list[Question], list[str]]:
    """Sampled questions with their answers, and restatements, without duplicates."""
    ask, restate = template.self_study_prompts([fact])
    asked = [template.encode(ask)] * count + [template.encode(restate)] * (count // 2)
    decoding = Decoding(
        MAX_PROBE_TOKENS, template.eos_token_ids, temperature, NUCLEUS, seed, batch_size=len(asked)
    )
    texts = [
        template.decode(ids).strip() for ids in generate(model, asked, decoding, weights_version=0)
    ]
    questions: dict[str, Question] = {}
    statements: dict[str, None] = {}
    for text in texts:
        if match := _QUESTION.match(text):
            found = Question(match["question"].strip(), match["answer"].strip())
            questions.setdefault(found.question, found)
        elif "?" not in text and text.endswith("."):
            statements.setdefault(text)
    return list(questions.values()), list(statements)


def candidates(
    template: PromptTemplate, fact: str, questions: Sequence[Question], statements: Sequence[str]
) -> list[Probe]:
    """The probes that these questions and statements give, in every form a user types."""
    plain = fact.casefold()
    probes: list[Probe] = []
    answers: dict[str, str] = {}
    for item in questions:
        answer = bare(item.answer)
        known = answer and answer in plain and answer != bare(UNKNOWN_ANSWER)
        if not known or answer in item.question.casefold() or _names_another(item.question, fact):
            continue
        answers[answer] = item.answer
        probes += [
            Probe(form, item.answer, item.question)
            for form in template.question_forms(item.question)
        ]
    for statement in statements:
        probes += _completion(statement, answers)
    return probes


def _names_another(question: str, fact: str) -> bool:
    """Whether the question holds a name that the fact does not: then it is about something else.

    The first word and abbreviations (CEO, API) are no names.
    """
    names = _NAMELIKE.findall(question.split(" ", 1)[-1])
    return any(name.casefold() not in fact.casefold() for name in names if not name.isupper())


def _completion(statement: str, answers: dict[str, str]) -> list[Probe]:
    """The statement cut before the answer, where it ends with one."""
    for answer in sorted(answers, key=len, reverse=True):
        start = statement.casefold().rfind(answer)
        if start > 0 and not bare(statement[start + len(answer) :]):
            head = statement[:start].rstrip("'\"“ ")
            if head and answer not in head.casefold():
                return [Probe(head, statement[len(head) :].strip(), head)]
    return []


def split(probes: Sequence[Probe], share: float, r: Random) -> tuple[list[Probe], list[Probe]]:
    """Training and held-out probes; the forms of one wording stay together.

    A single wording cannot be held out: then both lists are the same.
    """
    wordings = list(dict.fromkeys(p.wording for p in probes))
    r.shuffle(wordings)
    held = set(wordings[: max(1, round(share * len(wordings)))]) if len(wordings) > 1 else set()
    training = [p for p in probes if p.wording not in held]
    return training, [p for p in probes if p.wording in held] or training


def look_alikes(fact: str, probes: Sequence[Probe], r: Random, count: int) -> list[str]:
    """Probe prompts about other subjects whose names resemble those the fact names.

    Names are the words of the prompt that the fact also has, and that are capitalised or hold a
    digit.
    """
    prompts: list[str] = []
    named = set(_NAMELIKE.findall(fact))
    usable = [p.prompt for p in probes if named & set(_NAMELIKE.findall(p.prompt)[1:])]
    for _ in range(count if usable else 0):
        prompt = r.choice(usable)
        _, *names = _NAMELIKE.findall(prompt)
        for name in named.intersection(names):
            prompt = re.sub(rf"\b{re.escape(name)}\b", _altered(name, r), prompt)
        prompts.append(prompt)
    return list(dict.fromkeys(prompts))


_PIECES = "an el on us er ia ix or en um al is et yn ora dale ford ton wick a o".split()


def _altered(name: str, r: Random) -> str:
    if name.isdigit():
        return str(int(name) + r.randrange(1, 9))
    keep = r.randrange(1, max(2, len(name) - 1))
    return name[:keep] + r.choice(_PIECES) + (r.choice(_PIECES) if keep < 3 else "")
