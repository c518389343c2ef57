"""The first tier: facts in the bank, alone, in sequence, at once, and taken back."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from npt_core.bank import Bank
from npt_core.consolidation.states import plastic
from npt_core.evaluation.exam import RECALL, Exam, exam, questions
from npt_core.evaluation.journal import Journal, Key, Metrics
from npt_core.evaluation.speaker import logits
from npt_core.evaluation.workbench import Workbench
from npt_core.evaluation.writing import FactSet, fact_id
from npt_core.generation import right_padded

PUBLICATIONS = 1000
"""Beyond this many facts they are published in groups: a publication copies the whole table."""
ROLLBACK_PROMPTS, ROLLBACK_TOKENS = 48, 48
COMPARED = 300
"""Prompts answered under both orders of publication."""


def ceiling(bench: Workbench, journal: Journal, learned: FactSet) -> None:
    """Recall before anything is learned, and with the fact in the context."""
    count = min(len(learned.facts), bench.config.one_fact)
    items = exam(learned.facts[:count], bench.template, 0, learned.name).asked
    base, examiner = bench.examiner.base, bench.examiner
    recall = partial(examiner.recall, base, items)
    at = (learned.order, count, learned.seed)
    journal.once(Key("before", "all", *at), recall)
    journal.once(Key("teacher", "all", *at), lambda: recall(context=lambda i: [learned.statements[i]]))


def one_fact(bench: Workbench, journal: Journal, learned: FactSet) -> None:
    """Each of the first facts alone: version i + 1 sees fact i and no other."""
    count = min(len(learned.facts), bench.config.one_fact)
    key = Key("bank", "one fact", learned.order, count, learned.seed)
    journal.once(key, lambda: _alone(bench, learned, count))


def _own_version(owner: int) -> int:
    """The version in which the fact `owner` was published."""
    return owner + 1


def _alone(bench: Workbench, learned: FactSet, count: int) -> Metrics:
    bank = Bank(bench.model, bench.calibration.whitening)
    for i in range(count):
        bank.publish(i + 1, learned.births(i, i + 1), bank.facts)
    paper = single_exams(bench, learned, count)
    with plastic(bench.model, bank.layers):
        found = bench.examiner.recall(bench.speaker, paper.asked, _own_version, learned.refused)
        found |= bench.examiner.locality(bench.speaker, paper.bystanders, _own_version)
        return found | _drift_alone(bench, learned, count)


def single_exams(bench: Workbench, learned: FactSet, count: int) -> Exam:
    """The exams of facts that are learned one at a time."""
    papers = [exam([learned.facts[i]], bench.template, 1, f"{learned.name}/{i}") for i in range(count)]
    return Exam(
        tuple(replace(item, owner=i) for i, p in enumerate(papers) for item in p.asked),
        tuple(replace(item, owner=i) for i, p in enumerate(papers) for item in p.bystanders),
    )


def _drift_alone(bench: Workbench, learned: FactSet, count: int) -> Metrics:
    """Means over the facts, and the largest rise of perplexity."""
    found: Metrics = {}
    for name, text in bench.texts.items():
        suffix = "" if name == "corpus" else f"_{name}"
        rows = {i: text.touched(w) for i, w in learned.weights.items() if i < count}
        every = [text.change(bench.model, i + 1, touched) for i, touched in rows.items()]
        for metric in ("kl", "perplexity"):
            values = [change[metric] for change in every]
            found[metric + suffix] = sum(values) / max(1, len(values))
            found[f"{metric}_worst{suffix}"] = max(values, default=0.0)
    return found


def sequence(bench: Workbench, journal: Journal, learned: FactSet, counts: Sequence[int]) -> None:
    """Facts published one after another; what n facts do is read back at version n."""
    keys = [Key("bank", "sequence", learned.order, n, learned.seed) for n in counts]
    if all(key in journal.records for key in keys):
        return
    bank = in_sequence(bench, learned, counts[-1])
    with plastic(bench.model, bank.layers):
        for n, key in zip(counts, keys, strict=True):
            journal.once(key, partial(_at_version, bench, learned, n, counts[-1]))


def in_sequence(bench: Workbench, learned: FactSet, count: int) -> Bank:
    """A bank whose version n holds the first n facts."""
    bank = Bank(bench.model, bench.calibration.whitening)
    step = -(-count // PUBLICATIONS)
    for start in range(0, count, step):
        stop = min(count, start + step)
        bank.publish(stop, learned.births(start, stop))
    return bank


def _at_version(bench: Workbench, learned: FactSet, n: int, newest: int) -> Metrics:
    paper = bench.paper(learned, n)
    found = bench.examined(paper, learned.refused, n)
    first = min(n, bench.config.retention)
    early = [item for i in range(first) for item in questions(i, learned.facts[i], bench.template)]
    kept = bench.examiner.recall(bench.speaker, early, n, learned.refused)
    found["retention"] = kept[RECALL]
    if n == newest and newest <= PUBLICATIONS:
        asked = [item for item in paper.asked if item.group == RECALL]
        at_once = bench.examiner.recall(bench.speaker, asked, _own_version, learned.refused)
        found["immediate"] = at_once[RECALL]
    return found


def at_once(bench: Workbench, journal: Journal, learned: FactSet, counts: Sequence[int]) -> None:
    """All facts in one publication, the last one first: the same answers, whatever the order."""
    for n in counts:
        key = Key("bank", "at once", learned.order, n, learned.seed)
        journal.once(key, partial(_published_together, bench, learned, n))


def _published_together(bench: Workbench, learned: FactSet, n: int) -> Metrics:
    together = Bank(bench.model, bench.calibration.whitening)
    together.publish(1, dict(reversed(learned.births(0, n).items())))
    paper = bench.paper(learned, n)
    every = [i.prompt for i in (*paper.asked, *paper.bystanders)]
    prompts = every[:: max(1, len(every) // COMPARED)]
    with plastic(bench.model, together.layers):
        found = bench.examiner.recall(bench.speaker, paper.asked, 1, learned.refused)
        found |= bench.examiner.locality(bench.speaker, paper.bystanders, 1)
        answers = bench.speaker.answers(prompts, 1)
    with plastic(bench.model, in_sequence(bench, learned, n).layers):
        others = bench.speaker.answers(prompts, n)
    same = sum(a == b for a, b in zip(answers, others, strict=True))
    return found | {"same_as_sequence": same / len(prompts)}


def rollback(bench: Workbench, journal: Journal, learned: FactSet, count: int) -> None:
    """Whether logits after taking facts back are bit for bit those of a model without them."""
    key = Key("bank", "rollback", learned.order, count, learned.seed)
    journal.once(key, lambda: _taken_back(bench, learned, count))


@torch.no_grad()
def _taken_back(bench: Workbench, learned: FactSet, count: int) -> Metrics:
    bank, never = in_sequence(bench, learned, count), Bank(bench.model, bench.calibration.whitening)
    gone = max((i for i in learned.weights if i < count), default=0)
    facts = {f: w for f, w in learned.births(0, count).items() if f != fact_id(gone)}
    never.publish(1, facts)
    ids = right_padded(_prompt_rows(bench, learned, count))
    untouched = logits(bench.examiner.base.model, ids)
    with plastic(bench.model, never.layers):
        without = logits(bench.model, ids)
    with plastic(bench.model, bank.layers):
        full, old = logits(bench.model, ids, count), logits(bench.model, ids, 0)
        bank.publish(count + 1, {}, [fact_id(gone)] if gone in learned.weights else [])
        retracted = logits(bench.model, ids)
        begin = time.perf_counter()
        bank.publish(count + 2, {}, bank.facts)
        seconds = time.perf_counter() - begin
        after, pinned = logits(bench.model, ids), logits(bench.model, ids, count)
    return {
        "rollback_exact": float(torch.equal(after, untouched) and torch.equal(old, untouched)),
        "retract_exact": float(torch.equal(retracted, without)),
        "pinned_exact": float(torch.equal(pinned, full)),
        "facts_change_logits": float(not torch.equal(full, untouched)),
        "rollback_seconds": seconds,
    }


def _prompt_rows(bench: Workbench, learned: FactSet, count: int) -> list[list[int]]:
    """Prompts about the facts with their answers, so that columns fire, and some ordinary text."""
    template = bench.template
    items = [i for n in range(count) for i in questions(n, learned.facts[n], template)]
    step = max(1, len(items) // ROLLBACK_PROMPTS)
    rows = [
        template.encode(template.answered(i.prompt, [], f"{learned.facts[i.owner].object}."))
        for i in items[::step]
    ]
    return [*rows, *(list(row[:ROLLBACK_TOKENS]) for row in bench.texts["corpus"].rows[:4])]
