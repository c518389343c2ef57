"""Runs every baseline: options chosen on development facts, then one fact alone, then many."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from npt_core.consolidation import InvalidRequest
from npt_core.consolidation.request import PRESETS
from npt_core.evaluation.banked import single_exams
from npt_core.evaluation.baselines.editor import Editor, Subject, Taught
from npt_core.evaluation.baselines.finetuning import FineTuning
from npt_core.evaluation.baselines.located import Memit, Rome
from npt_core.evaluation.baselines.simple import Modulation, Ridge
from npt_core.evaluation.config import BaselineConfig
from npt_core.evaluation.exam import PARAPHRASE, RECALL, Exam, exam
from npt_core.evaluation.journal import Journal, Key, Metrics
from npt_core.evaluation.speaker import edited
from npt_core.evaluation.workbench import Workbench
from npt_core.evaluation.writing import FactSet, drawn

DEVELOPMENT_SEED = -1
Paper = Callable[[int], Exam]


def baselines(num_layers: int) -> dict[str, list[Editor]]:
    """By name, each baseline with the options it may choose from."""
    middle = range(max(1, num_layers // 3), max(2, num_layers // 2 + 1))
    last = max(1, num_layers // 2)
    spread = tuple(range(max(0, last - 2), last + 1))
    return {
        **{f"modulation, {preset}": [Modulation(preset)] for preset in PRESETS},
        "ridge, no bank": [Ridge()],
        "fine-tuning": [FineTuning(rate) for rate in (3e-4, 1e-3, 3e-3)],
        "ROME": [Rome(layer) for layer in middle],
        "MEMIT": [Memit(spread, strength) for strength in (10.0, 100.0, 1000.0)],
    }


def compare_baselines(
    bench: Workbench, journal: Journal, learned: FactSet, config: BaselineConfig
) -> None:
    """Measures every baseline on the first facts of `learned`."""
    in_context(bench, journal, learned, config)
    subject = Subject(bench.model, bench.template, bench.consolidator)
    facts, tuning = taught(learned), _Tuning(bench, subject, journal, config)
    for name, options in baselines(len(bench.model.model.layers)).items():
        try:
            editor = options[tuning.choice(name, options)]
            _measure(bench, journal, learned, facts, editor, subject, config)
        except InvalidRequest as refused:  # a plain Llama has no modulation to make permanent
            journal.note(f"not measured: {name}", lambda refused=refused: str(refused))  # type: ignore[misc]


def taught(learned: FactSet) -> list[Taught]:
    """The facts as baselines get them."""
    pairs = zip(learned.facts, learned.statements, strict=True)
    return [Taught(i, f, s, learned.weights.get(i)) for i, (f, s) in enumerate(pairs)]


def in_context(
    bench: Workbench, journal: Journal, learned: FactSet, config: BaselineConfig
) -> None:
    """The facts in the context instead of the weights, alone and as many as fit."""
    one = min(config.one_fact, len(learned.facts))
    key = Key("in-context", "one fact", learned.order, one, learned.seed)
    paper = single_exams(bench, learned, one)
    journal.once(key, lambda: _with_context(bench, paper, lambda i: [learned.statements[i]]))
    limit = int(bench.model.config.max_position_embeddings) // 2
    for n in (n for n in config.counts if n <= len(learned.facts)):
        given = learned.statements[:n]
        if len(bench.template.encode(bench.template.with_context("", given))) <= limit:
            paper = exam(learned.facts[:n], bench.template, bench.config.bystanders, learned.name)
            key = Key("in-context", "sequence", learned.order, n, learned.seed)
            journal.once(key, lambda p=paper, g=given: _with_context(bench, p, lambda _: g))  # type: ignore[misc]


def _with_context(
    bench: Workbench, paper: Exam, context: Callable[[int], Sequence[str]]
) -> Metrics:
    base, examiner = bench.examiner.base, bench.examiner
    return {
        **examiner.recall(base, paper.asked, context=context),
        **examiner.locality(base, paper.bystanders, context=context),
    }


def _measure(
    bench: Workbench,
    journal: Journal,
    learned: FactSet,
    facts: Sequence[Taught],
    editor: Editor,
    subject: Subject,
    config: BaselineConfig,
) -> None:
    one = min(config.one_fact, len(facts))
    key = Key(editor.name, "one fact", learned.order, one, learned.seed)
    journal.once(key, lambda: _each_alone(bench, subject, editor, facts[:one], learned.name))
    counts = [n for n in config.counts if n <= len(facts)]
    keys = {n: Key(editor.name, "sequence", learned.order, n, learned.seed) for n in counts}
    if all(k in journal.records for k in keys.values()):
        return
    begin = time.perf_counter()
    for n, edits in zip(counts, editor.edits(subject, facts, counts), strict=True):
        seconds = (time.perf_counter() - begin) / n
        paper = exam(learned.facts[:n], bench.template, bench.config.bystanders, learned.name)
        with edited(bench.model, edits):
            found = bench.examined(paper, frozenset())
        journal.once(keys[n], lambda f=found, s=seconds: f | {"seconds": s})  # type: ignore[misc]


def _each_alone(
    bench: Workbench, subject: Subject, editor: Editor, facts: Sequence[Taught], seed: str
) -> Metrics:
    """Means over facts, each learned alone by the untouched model."""
    found = []
    for item in facts:
        begin = time.perf_counter()
        edits = next(iter(editor.edits(subject, [item], [1])))
        seconds = time.perf_counter() - begin
        paper = exam([item.fact], bench.template, 1, f"{seed}/{item.number}")
        with edited(bench.model, edits):
            found.append(bench.examined(paper, frozenset()) | {"seconds": seconds})
    return means(found)


def means(found: Sequence[Mapping[str, float]]) -> Metrics:
    """The mean of each metric over those that have it."""
    names = dict.fromkeys(name for metrics in found for name in metrics)
    return {name: fmean(m[name] for m in found if name in m) for name in names}


@dataclass
class _Tuning:
    """Chooses a baseline's options by recall, paraphrase and locality on development facts."""

    bench: Workbench
    subject: Subject
    journal: Journal
    config: BaselineConfig
    _facts: list[Taught] | None = None

    def choice(self, name: str, options: Sequence[Editor]) -> int:
        """The index of the best option."""
        if len(options) == 1:
            return 0
        return int(self.journal.note(f"chosen: {name}", lambda: self._best(options))["index"])

    def _best(self, options: Sequence[Editor]) -> dict[str, object]:
        scores = [self._score(editor) for editor in options]
        index = max(range(len(options)), key=scores.__getitem__)
        return {"index": index, "options": [repr(o) for o in options], "scores": scores}

    def _score(self, editor: Editor) -> float:
        found = _each_alone(self.bench, self.subject, editor, self._development(), "development")
        return found[RECALL] + found[PARAPHRASE] + found["locality"]

    def _development(self) -> list[Taught]:
        if self._facts is None:
            facts = drawn("random", DEVELOPMENT_SEED, self.config.development)
            self._facts = [Taught(-1 - t.number, t.fact, t.statement, None) for t in taught(facts)]
        return self._facts
