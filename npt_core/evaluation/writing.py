"""Every fact is consolidated once; all protocols and both tiers use the same weights.

A fact's columns do not depend on other facts, which is what makes this fair: a fact in a sequence
of 1,000 has the weights it would have alone.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file

from npt_core.bank import FactWeights
from npt_core.consolidation import Consolidator, FactError, UnreadableFact, WriteRequest
from npt_core.evaluation.exam import clustered_facts, random_facts, statements
from npt_core.evaluation.journal import Journal, Key, Metrics
from npt_core.evaluation.statistics import percentile
from npt_core.training.facts import Fact

STAGES = ("study", "write", "verify")
TOLD_EVERY = 50


@dataclass(frozen=True)
class FactSet:
    """Facts in the order in which they are learned; a refused one has no weights."""

    name: str
    order: str
    seed: int
    facts: Sequence[Fact]
    statements: Sequence[str]
    weights: Mapping[int, FactWeights] = field(default_factory=dict)

    @property
    def refused(self) -> frozenset[int]:
        """Facts that were refused."""
        return frozenset(range(len(self.facts))) - frozenset(self.weights)

    def births(self, start: int, stop: int) -> dict[str, FactWeights]:
        """What the facts of a range write, by fact id."""
        return {fact_id(i): self.weights[i] for i in range(start, stop) if i in self.weights}


def fact_id(number: int) -> str:
    """Sorts in the order of learning."""
    return f"{number:06d}"


def drawn(order: str, seed: int, count: int) -> FactSet:
    """Facts and their sentences, not yet written."""
    name = f"{order}/{seed}"
    facts = (clustered_facts if order == "clustered" else random_facts)(count, str(seed))
    return FactSet(name, order, seed, facts, statements(facts, name))


class Scribe:
    """Writes facts, and keeps what it wrote in `folder` until the seed is done."""

    def __init__(self, consolidator: Consolidator, journal: Journal, folder: Path | None) -> None:
        self.consolidator, self.journal, self.folder = consolidator, journal, folder

    def written(self, planned: FactSet) -> FactSet:
        """`planned` with the weights of every fact that was not refused."""
        weights: dict[int, FactWeights] = {}
        for number, statement in enumerate(planned.statements):
            made = self._one(planned, number, statement)
            if made is not None:
                weights[number] = made
        done = FactSet(planned.name, planned.order, planned.seed, planned.facts, planned.statements, weights)
        self._summarise(done)
        return done

    def _one(self, planned: FactSet, number: int, statement: str) -> FactWeights | None:
        path = self._path(planned, number)
        key = Key("write", "fact", planned.order, 1, planned.seed, str(number))
        if key in self.journal.records:
            if not self.journal.records[key]["accepted"]:
                return None
            if path is not None and path.exists():
                return FactWeights.from_tensors(load_file(path))
        begin = time.perf_counter()
        weights, metrics = self._consolidated(statement, number)
        metrics["seconds"] = time.perf_counter() - begin
        if weights is not None and path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(weights.to_tensors(), path)
        self.journal.once(key, lambda: metrics, told=number % TOLD_EVERY == 0)
        return weights

    def _consolidated(self, statement: str, number: int) -> tuple[FactWeights | None, Metrics]:
        try:
            made = self.consolidator.consolidate(WriteRequest(statement, seed=number))
        except FactError as refused:
            report, weights = refused.report, None
            unreadable = isinstance(refused, UnreadableFact)
        else:
            report, weights, unreadable = made.report, made.weights, False
        stages = {name: report.timings.get(name, 0.0) for name in STAGES}
        counts = {"columns": report.columns, "bytes": report.bytes, "attempts": report.attempts}
        return weights, {
            "accepted": float(weights is not None),
            "unreadable": float(unreadable),
        } | stages | counts

    def _summarise(self, done: FactSet) -> None:
        key = Key("write", "summary", done.order, len(done.facts), done.seed)
        self.journal.once(key, lambda: self._summary(done))

    def _summary(self, done: FactSet) -> Metrics:
        keys = [Key("write", "fact", done.order, 1, done.seed, str(n)) for n in range(len(done.facts))]
        every = [self.journal.records[key] for key in keys]
        accepted = [m for m in every if m["accepted"]]
        refused = 1 - len(accepted) / len(every)
        found = {"refused": refused, "unreadable": sum(m["unreadable"] for m in every) / len(every)}
        for name in ("seconds", *STAGES, "columns", "bytes") if accepted else ():
            values = [m[name] for m in accepted]
            found |= {
                f"{name}_median": percentile(values, 0.5),
                f"{name}_p95": percentile(values, 0.95),
            }
        return found

    def _path(self, planned: FactSet, number: int) -> Path | None:
        return None if self.folder is None else self.folder / planned.name / f"{fact_id(number)}.safetensors"
