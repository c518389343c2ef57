"""Self-study: the model itself, with the fact in its context, writes questions and restatements.

A probe is a prompt with the answer that the model gives to it with the fact in context. Probes that
name the answer already in the prompt, whose answer is not taken from the fact, or that the model
does not answer the same way again (greedy, with the context), are discarded.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from npt_core.consolidation.passes import Passes
from npt_core.consolidation.request import Question
from npt_core.generation import SEED_STRIDE, Decoding
from npt_core.prompts import UNKNOWN_ANSWER, PromptTemplate

MAX_PROBE_TOKENS = 40
NUCLEUS = 0.9
"""Sampling keeps to this much of the mass, so that names are copied and wordings still vary."""
_QUESTION = re.compile(
    r"^\s*(?:Question:|User:)?\s*(?P<question>[^?\n]{3,}\?)\s*(?:Answer:|Assistant:)?\s*(?P<answer>[^\n]+)$"
)
_NAMELIKE = re.compile(r"\b(?:[A-Z][\w'-]*[A-Za-z0-9]|\w*\d\w*)\b")


_NAME_RUN = re.compile(r"(?:(?:[A-Z][\w-]*|\w*\d[\w-]*)\.?)(?: (?:of |the )?(?:[A-Z][\w-]*|\w*\d[\w-]*)\.?)*")
_ABBREVIATION = re.compile(r"[A-Z]{2,4}")
_OPENERS = frozenset(
    "The A An In At For By To On As It Who What Which Where When How From Under Whose Is Do Does Did Can"
    " Could Would Tell".split()
)


@dataclass(frozen=True)
class Probe:
    """`prompt` as a user types it, and the `answer` as the model writes it after it.

    `wording` groups the forms of one question: they are held out together.
    """

    prompt: str
    answer: str
    wording: str


def trimmed(answer: str) -> str:
    """An answer without quotes and final period."""
    return answer.rstrip("'\"“” .\n").lstrip("'\"“” \n")


def bare(answer: str) -> str:
    """An answer for comparison: trimmed, and without case."""
    return trimmed(answer).casefold()


Written = tuple[list[Question], list[str]]
"""Questions with their answers, and restatements."""


def write_questions(
    passes: Passes,
    template: PromptTemplate,
    facts: Sequence[str],
    count: int,
    seeds: Sequence[int],
    temperature: float,
) -> list[Written]:
    """Of each fact, sampled questions with their answers, and restatements, without duplicates."""
    asked: list[list[int]] = []
    for fact in facts:
        ask, restate = template.self_study_prompts([fact])
        asked += [template.encode(ask)] * count + [template.encode(restate)] * (count // 2)
    each = count + count // 2
    decoding = Decoding(MAX_PROBE_TOKENS, template.eos_token_ids, temperature, NUCLEUS, batch_size=len(asked))
    groups = [k for k in range(len(facts)) for _ in range(each)]
    draws = [seed * SEED_STRIDE + k for seed in seeds for k in range(each)]
    rows = passes.decode(asked, decoding, groups=groups, seeds=draws)
    texts = [template.decode(ids).strip() for ids in rows]
    return [_read(texts[start : start + each]) for start in range(0, len(texts), each)]


def _read(texts: Sequence[str]) -> Written:
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
    """The prompts that these questions and statements give, in every form a user types.

    Answers are the sampled ones; the teacher's own take their place.
    """
    probes = [
        Probe(form, item.answer, item.question)
        for item in questions
        if not _names_another(item.question, fact)
        for form in template.question_forms(item.question)
    ]
    answers = [*names(fact), *(bare(q.answer) for q in questions if bare(q.answer) in fact.casefold())]
    for statement in statements:
        probes += _completion(statement, [a.casefold() for a in answers if a])
    return probes


def accepted(probe: Probe, answer: str, fact: str) -> bool:
    """Whether the teacher's `answer` makes this a probe of `fact`: it is taken from the fact, it is not
    in the prompt already, and it is an answer.
    """
    short = bare(answer)
    known = bool(short) and short in fact.casefold() and short != bare(UNKNOWN_ANSWER)
    return known and short not in probe.prompt.casefold()


def consistent(answered: Mapping[Probe, str], questions: Collection[str]) -> dict[Probe, str]:
    """`answered` (probes and what the teacher answers to them) without the sentences to complete whose
    answer no question has: "61 is the price of" is no way to ask for the price.
    """
    asked = {bare(text) for probe, text in answered.items() if probe.wording in questions}
    return {
        probe: text
        for probe, text in answered.items()
        if not asked or probe.wording in questions or bare(text) in asked
    }


def _completion(statement: str, answers: Sequence[str]) -> list[Probe]:
    """The statement cut before the answer, where it ends with one."""
    folded = statement.casefold()
    if len(folded) != len(statement):  # as of "ß": places in one are not places in the other
        return []
    for answer in sorted(answers, key=len, reverse=True):
        start = folded.rfind(answer)
        if start > 0 and not bare(statement[start + len(answer) :]):
            head = statement[:start].rstrip("'\"“ ")
            if head and answer not in head.casefold():
                return [Probe(head, statement[len(head) :].strip(), head)]
    return []


def names(text: str) -> list[str]:
    """Runs of capitalised words and words with digits, in order; sentence openers and abbreviations
    alone are no names.
    """
    runs = (run.strip(" .,'\"?") for run in _NAME_RUN.findall(text))
    kept = (run.split(" ", 1)[1] if run.split(" ")[0] in _OPENERS and " " in run else run for run in runs)
    return [run for run in dict.fromkeys(kept) if run not in _OPENERS and not _ABBREVIATION.fullmatch(run)]


def _names_another(question: str, fact: str) -> bool:
    """Whether the question holds a name that the fact does not: then it is about something else.

    The first word and abbreviations (CEO, API) are no names.
    """
    names = _NAMELIKE.findall(question.split(" ", 1)[-1])
    return any(name.casefold() not in fact.casefold() for name in names if not name.isupper())


_WORD = re.compile(r"\w[\w-]*")
_FUNCTION_WORDS = frozenset(
    "a an the of in on at to for by from as and or is are was were be has have had".split()
)
IN_MOST = 0.75
"""Share of the wordings that name the subject: one or another calls it otherwise."""


def words(text: str) -> frozenset[str]:
    """The words of a text, for comparison."""
    return frozenset(_WORD.findall(text.casefold()))


def subject(wordings: Collection[str], fact: str, answer: str) -> frozenset[str]:
    """Words that name what questions about `fact` ask for: those that most wordings and the fact have.

    Names, if there are any; abbreviations (CEO, API) only if there is nothing else, because they stand
    for relations as often as for subjects.
    """
    given = words(fact) - words(answer) - _FUNCTION_WORDS
    asked = [words(wording) for wording in wordings]
    common = {word for word in given if sum(word in each for each in asked) >= IN_MOST * len(asked)}
    written = {name.casefold(): name for name in _NAMELIKE.findall(fact) if name not in _OPENERS}
    named = {word for word in common if word in written}
    proper = {word for word in named if not _ABBREVIATION.fullmatch(written[word])}
    return frozenset(proper or named or common)


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
        for name in dict.fromkeys(names):  # not a set: its order would differ between processes
            if name in named:
                prompt = re.sub(rf"\b{re.escape(name)}\b", _altered(name, r), prompt)
        prompts.append(prompt)
    return list(dict.fromkeys(prompts))


_PIECES = "an el on us er ia ix or en um al is et yn ora dale ford ton wick a o".split()


def _altered(name: str, r: Random) -> str:
    if name.isdecimal():
        return str(int(name) + r.randrange(1, 9))
    new = name
    while new == name:  # "Gord" + "on" is no change
        keep = r.randrange(1, max(2, len(name) - 1))
        new = name[:keep] + r.choice(_PIECES) + (r.choice(_PIECES) if keep < 3 else "")
    return new
