"""Runs every baseline: options chosen on development facts, then one fact alone, then many."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean

from npt_core.consolidation import InvalidRequest
from npt_core.consolidation.request import PresetName
from npt_core.evaluation.banked import single_exams
from npt_core.evaluation.baselines.editor import Editor, Subject, Taught
from npt_core.evaluation.baselines.finetuning import FineTuning
from npt_core.evaluation.baselines.located import Memit, Rome
from npt_core.evaluation.baselines.simple import Modulation, Ridge
from npt_core.evaluation.config import BaselineConfig
from npt_core.evaluation.exam import PARAPHRASE, RECALL, Exam, exam
from npt_core.evaluation.journal import Journal, Key, Metrics
from npt_core.evaluation.speaker import Edits, edited
from npt_core.evaluation.workbench import Workbench
from npt_core.evaluation.writing import FactSet, drawn

DEVELOPMENT_SEED = -1
BRIEF_ROWS = 16
"""Held-out rows read after each single fact; after many facts, all of them are."""
PRESET_NAMES: tuple[PresetName, ...] = ("factual_recall", "reasoning", "creative")


def baselines(num_layers: int) -> dict[str, list[Editor]]:
    """By name, each baseline with the options it may choose from."""
    third, half = num_layers // 3, num_layers // 2
    spreads = [tuple(range(max(0, last - 2), last + 1)) for last in (third, half)]
    return {
        **{f"modulation, {preset}": [Modulation(preset)] for preset in PRESET_NAMES},
        "ridge, no bank": [Ridge()],
        "fine-tuning": [FineTuning(rate) for rate in (3e-4, 1e-3, 3e-3)],
        "ROME": [Rome(layer) for layer in sorted({num_layers // 6, third, half})],
        "MEMIT": [Memit(layers, strength) for layers in spreads for strength in (1.0, 100.0)],
    }


def compare_baselines(bench: Workbench, journal: Journal, learned: FactSet, config: BaselineConfig) -> None:
    """Measures every baseline on the first facts of `learned`."""
    in_context(bench, journal, learned, config)
    comparison = Comparison(bench, journal, learned, config)
    for name, options in baselines(len(bench.model.model.layers)).items():
        try:
            comparison.run(name, options)
        except InvalidRequest as refused:  # a plain Llama has no modulation to make permanent
            journal.note(f"not measured: {name}", partial(str, refused))


def in_context(bench: Workbench, journal: Journal, learned: FactSet, config: BaselineConfig) -> None:
    """The facts in the context instead of the weights, alone and as many as fit."""
    one = min(config.one_fact, len(learned.facts))
    key = Key("in-context", "one fact", learned.order, one, learned.seed)
    paper = single_exams(bench, learned, one)
    journal.once(key, partial(_with_context, bench, paper, lambda i: [learned.statements[i]]))
    limit = int(bench.model.config.max_position_embeddings) // 2
    for n in (n for n in config.counts if n <= len(learned.facts)):
        given = learned.statements[:n]
        if len(bench.template.encode(bench.template.with_context("", given))) <= limit:
            paper = bench.paper(learned, n)
            key = Key("in-context", "sequence", learned.order, n, learned.seed)
            journal.once(key, partial(_with_context, bench, paper, partial(_always, given)))


def _always(given: Sequence[str], _owner: int) -> Sequence[str]:
    return given


def _with_context(bench: Workbench, paper: Exam, context: Callable[[int], Sequence[str]]) -> Metrics:
    base, examiner = bench.examiner.base, bench.examiner
    return {
        **examiner.recall(base, paper.asked, context=context),
        **examiner.locality(base, paper.bystanders, context=context),
    }


def taught(facts: FactSet) -> list[Taught]:
    """The facts as baselines get them."""
    pairs = zip(facts.facts, facts.statements, strict=True)
    return [Taught(i, f, s, facts.weights.get(i)) for i, (f, s) in enumerate(pairs)]


class Comparison:
    """Baselines on the facts of one set."""

    def __init__(self, bench: Workbench, journal: Journal, learned: FactSet, config: BaselineConfig) -> None:
        self.bench, self.journal, self.learned, self.config = bench, journal, learned, config
        self.subject = Subject(bench.model, bench.template, bench.consolidator)
        self.facts = taught(learned)
        self.development = taught(drawn("random", DEVELOPMENT_SEED, config.development))

    def run(self, name: str, options: Sequence[Editor]) -> None:
        """Measures the best of `options`."""
        editor = options[0] if len(options) == 1 else options[self._choice(name, options)]
        one = min(self.config.one_fact, len(self.facts))
        brief = {kind: text.first(BRIEF_ROWS) for kind, text in self.bench.texts.items()}
        bench = replace(self.bench, texts=brief)
        self.journal.once(
            self._key(editor, "one fact", one),
            lambda: self._each_alone(bench, editor, self.facts[:one]),
        )
        self._many(editor, [n for n in self.config.counts if n <= len(self.facts)])

    def _key(self, editor: Editor, protocol: str, count: int) -> Key:
        return Key(editor.name, protocol, self.learned.order, count, self.learned.seed)

    def _many(self, editor: Editor, counts: Sequence[int]) -> None:
        keys = [self._key(editor, "sequence", n) for n in counts]
        if all(key in self.journal.records for key in keys):
            return
        for key, (edits, seconds) in zip(
            keys, timed(editor.edits(self.subject, self.facts, counts)), strict=True
        ):
            self.journal.once(key, partial(self._after, edits, key.facts, seconds))

    def _after(self, edits: Edits, count: int, seconds: float) -> Metrics:
        paper = self.bench.paper(self.learned, count)
        with edited(self.bench.model, edits):
            found = self.bench.examined(paper, frozenset())
        return found | {"seconds": seconds / count}

    def _each_alone(self, bench: Workbench, editor: Editor, facts: Sequence[Taught]) -> Metrics:
        """Means over facts, each learned alone by the untouched model."""
        found = []
        for item in facts:
            ((edits, seconds),) = timed(editor.edits(self.subject, [item], [1]))
            paper = exam([item.fact], bench.template, 1, f"{self.learned.name}/{item.number}")
            with edited(bench.model, edits):
                found.append(bench.examined(paper, frozenset()) | {"seconds": seconds})
        return means(found)

    def _choice(self, name: str, options: Sequence[Editor]) -> int:
        return int(self.journal.note(f"chosen: {name}", lambda: self._best(options))["index"])

    def _best(self, options: Sequence[Editor]) -> dict[str, object]:
        """The option of most recall, paraphrase and locality on development facts."""
        bench = replace(self.bench, texts={})
        scores = []
        for editor in options:
            found = self._each_alone(bench, editor, self.development)
            scores.append(found[RECALL] + found[PARAPHRASE] + found["locality"])
        index = max(range(len(options)), key=scores.__getitem__)
        return {"index": index, "chosen": repr(options[index]), "scores": scores}


def timed(edits: Iterator[Edits]) -> Iterator[tuple[Edits, float]]:
    """Each edit with the seconds spent on making it and those before it."""
    total = 0.0
    while True:
        begin = time.perf_counter()
        made = next(edits, None)
        total += time.perf_counter() - begin
        if made is None:
            return
        yield made, total


def means(found: Sequence[Mapping[str, float]]) -> Metrics:
    """The mean of each metric over those that have it."""
    names = dict.fromkeys(name for metrics in found for name in metrics)
    return {name: fmean(m[name] for m in found if name in m) for name in names}
