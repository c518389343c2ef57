"""Every fact is consolidated once; all protocols and both tiers use the same weights.

A fact's columns do not depend on other facts, which is what makes this fair: a fact in a sequence
of 1,000 has the weights it would have alone.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from safetensors.torch import load_file

from npt_core.bank import FactWeights
from npt_core.consolidation import Consolidated, Consolidator, FactError, WriteRequest
from npt_core.evaluation.exam import clustered_facts, random_facts, statements
from npt_core.evaluation.journal import Journal, Key, Metrics
from npt_core.evaluation.statistics import percentile
from npt_core.evaluation.writers import STAGES, Writers, kept
from npt_core.training.facts import Fact

TIMED = 50
"""So many facts of a set are written one by one, with all threads, so that a write has its own time."""
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


def _key(planned: FactSet, number: int) -> Key:
    return Key("write", "fact", planned.order, 1, planned.seed, str(number))


def drawn(order: str, seed: int, count: int) -> FactSet:
    """Facts and their sentences, not yet written."""
    name = f"{order}/{seed}"
    facts = (clustered_facts if order == "clustered" else random_facts)(count, str(seed))
    return FactSet(name, order, seed, facts, statements(facts, name))


class Scribe:
    """Writes facts, and keeps what it wrote in `folder` until the run is done."""

    def __init__(
        self,
        consolidator: Consolidator,
        journal: Journal,
        folder: Path | None,
        writers: Writers | None = None,
    ) -> None:
        self.consolidator, self.journal, self.folder, self.writers = consolidator, journal, folder, writers

    def written(self, planned: FactSet) -> FactSet:
        """`planned` with the weights of every fact that was not refused."""
        if self.writers is not None and self.folder is not None:
            self._share_out(planned, self.writers)
        weights: dict[int, FactWeights] = {}
        for number, statement in enumerate(planned.statements):
            made = self._one(planned, number, statement)
            if made is not None:
                weights[number] = made
        done = FactSet(planned.name, planned.order, planned.seed, planned.facts, planned.statements, weights)
        self._summarise(done)
        return done

    def _share_out(self, planned: FactSet, writers: Writers) -> None:
        """Has the facts that are not there written by `writers`, the first ones excepted."""
        missing = [n for n in range(TIMED, len(planned.facts)) if not self._is_there(planned, n)]
        jobs = [(planned.statements[n], n, path) for n in missing if (path := self._path(planned, n))]
        for number, metrics in zip(missing, writers.write(jobs), strict=True):
            self.journal.once(_key(planned, number), partial(dict, metrics), told=number % TOLD_EVERY == 0)

    def _is_there(self, planned: FactSet, number: int) -> bool:
        known, path = self.journal.records.get(_key(planned, number)), self._path(planned, number)
        return known is not None and (not known["accepted"] or (path is not None and path.exists()))

    def _one(self, planned: FactSet, number: int, statement: str) -> FactWeights | None:
        path, key = self._path(planned, number), _key(planned, number)
        if key in self.journal.records:
            if not self.journal.records[key]["accepted"]:
                return None
            if path is not None and path.exists():
                return FactWeights.from_tensors(load_file(path))
        begin = time.perf_counter()
        try:
            made: Consolidated | FactError = self.consolidator.consolidate(
                WriteRequest(statement, seed=number)
            )
        except FactError as refused:
            made = refused
        seconds = time.perf_counter() - begin
        weights, metrics = kept(made, path)
        metrics["seconds"] = seconds
        self.journal.once(key, lambda: metrics, told=number % TOLD_EVERY == 0)
        return weights

    def _summarise(self, done: FactSet) -> None:
        key = Key("write", "summary", done.order, len(done.facts), done.seed)
        self.journal.once(key, lambda: self._summary(done))

    def _summary(self, done: FactSet) -> Metrics:
        every = [self.journal.records[_key(done, n)] for n in range(len(done.facts))]
        accepted = [m for m in every if m["accepted"]]
        refused = 1 - len(accepted) / len(every)
        found = {"refused": refused, "unreadable": sum(m["unreadable"] for m in every) / len(every)}
        timed = [m for m in accepted if "seconds" in m]
        for names, measured in ((("seconds", *STAGES), timed), (("columns", "bytes"), accepted)):
            for name in names if measured else ():
                values = [m[name] for m in measured]
                found |= {
                    f"{name}_median": percentile(values, 0.5),
                    f"{name}_p95": percentile(values, 0.95),
                }
        return found

    def _path(self, planned: FactSet, number: int) -> Path | None:
        return None if self.folder is None else self.folder / planned.name / f"{fact_id(number)}.safetensors"
