"""A fact becomes weights: self-study, teacher and student, columns, leak check, verification.

Each attempt of the ladder tries harder; only what is recalled on held-out wordings, and leaves the
locality set alone, is returned. Nothing here publishes, and nothing touches the serving model.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from random import Random

import torch
from torch import Tensor

from npt_core.bank import Bank, FactWeights
from npt_core.consolidation.calibration import Calibration, PlasticityConfig
from npt_core.consolidation.columns import (
    AlignedProbe,
    Lesson,
    align,
    answered,
    lesson,
    recall,
    scaled,
    taught,
    write,
)
from npt_core.consolidation.errors import (
    ConsolidationError,
    FactError,
    InvalidRequest,
    NotRecalled,
    UnreadableFact,
)
from npt_core.consolidation.modulation import checked_ids, modulation_weights
from npt_core.consolidation.passes import ModulePasses, Passes
from npt_core.consolidation.pieces import compute_in_pieces
from npt_core.consolidation.probes import (
    MAX_PROBE_TOKENS,
    Probe,
    accepted,
    bare,
    candidates,
    consistent,
    look_alikes,
    split,
    subject,
    trimmed,
    write_questions,
)
from npt_core.consolidation.refine import refine
from npt_core.consolidation.request import (
    PRESETS,
    STRATEGIES,
    Consolidated,
    WriteReport,
    WriteRequest,
)
from npt_core.consolidation.ridge import ridge_weights
from npt_core.consolidation.states import States, private_copy
from npt_core.consolidation.steps import Step
from npt_core.generation import Decoding
from npt_core.model import NPTForCausalLM
from npt_core.prompts import PromptTemplate

ATTEMPTS = 4
READINGS = 2
"""Attempts at a fact that the model cannot answer questions about: other questions seldom help."""
REFINE_STEPS = 10
STUDY_BATCH = 128
"""Probes that are answered at once, where several facts are studied together."""


@dataclass(frozen=True)
class Study:
    """The outcome of self-study: probes that the teacher answers, and the held-out ones."""

    training: tuple[AlignedProbe, ...]
    held_out: tuple[AlignedProbe, ...]
    prompts: tuple[Probe, ...]
    teacher: States
    written: int
    kept: int
    answer: str | None
    subject: frozenset[str] = frozenset()


@dataclass
class Stopwatch:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time of the block to `name`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin


class Consolidator:
    """Writes facts for one model. Not thread-safe: the service's write lock is around it."""

    def __init__(self, model: NPTForCausalLM, template: PromptTemplate, calibration: Calibration) -> None:
        self.model = private_copy(model)
        self.template = template
        self.calibration = calibration
        self.passes: Passes = ModulePasses(self.model)
        self._pause: Callable[[], None] = lambda: None
        self._tell: Callable[[Step], None] = lambda _: None

    def tell_steps(self, tell: Callable[[Step], None]) -> None:
        """From now on `tell` is called as each step of a fact begins."""
        self._tell = tell

    def give_way(self, pause: Callable[[], None], passes: Passes | None = None) -> None:
        """From now on `pause` is called between pieces of about a millisecond: of every pass, and of the leak
        check. `passes` that do so, too, take the place of those of the model's modules.
        """
        self._pause = pause
        self.passes = passes or self.passes
        compute_in_pieces(self.model, pause)

    @property
    def config(self) -> PlasticityConfig:
        """The parameters in force."""
        return self.calibration.config

    def consolidate(self, request: WriteRequest) -> Consolidated:
        """The weights of one fact.

        Raises InvalidRequest, UnreadableFact or NotRecalled; see `npt_core.consolidation.errors`.
        """
        (outcome,) = self.consolidate_all([request])
        if isinstance(outcome, Consolidated):
            return outcome
        raise outcome

    def consolidate_all(self, requests: Sequence[WriteRequest]) -> list[Consolidated | ConsolidationError]:
        """The weights of each fact, or why it has none. Facts do not depend on each other: they are
        studied together because a batch takes little more time than one.
        """
        outcomes: list[Consolidated | ConsolidationError | None] = [self._wrong(r) for r in requests]
        sound = [i for i, wrong in enumerate(outcomes) if wrong is None]
        watch = Stopwatch()
        with watch.stage("study"):
            studies = self.studies([requests[i] for i in sound])
        for i, study in zip(sound, studies, strict=True):
            each = Stopwatch({"study": watch.seconds["study"] / len(sound)})
            try:
                outcomes[i] = self._climbed(requests[i], study, each)
            except FactError as refused:
                outcomes[i] = refused
        return [outcome for outcome in outcomes if outcome is not None]

    def _wrong(self, request: WriteRequest) -> InvalidRequest | None:
        try:
            self._check(request)
        except InvalidRequest as wrong:
            return wrong
        return None

    def _climbed(self, request: WriteRequest, study: Study, watch: Stopwatch) -> Consolidated:
        """The ladder: each attempt after the first has a study of its own."""
        config, number = self._first(request), 1
        while True:
            try:
                return self._attempt(request, config, study, number, watch)
            except (NotRecalled, UnreadableFact) as refused:
                last = READINGS if isinstance(refused, UnreadableFact) else ATTEMPTS
                if number >= last or request.strategy == "modulation":
                    raise
                config = self._harder(config, request, refused, number)
            with watch.stage("study"):
                study = self.study(request, config, request.seed + 1000 * number)
            number += 1

    def _first(self, request: WriteRequest) -> PlasticityConfig:
        return self.config if request.layers is None else replace(self.config, layers=request.layers)

    def _harder(
        self,
        config: PlasticityConfig,
        request: WriteRequest,
        refused: NotRecalled | UnreadableFact,
        number: int,
    ) -> PlasticityConfig:
        """The next rung: what disturbed others gets stricter, what was not recalled tries more."""
        report = refused.report
        if isinstance(refused, NotRecalled) and report.locality < config.min_locality:
            threshold = min(config.threshold + 0.1, config.max_threshold)
            return replace(config, threshold=threshold, margin=2 * config.margin)
        more = replace(config, questions=2 * self.config.questions, merge=0.97, surprise=0.02)
        if number == 1:
            return more
        layers = config.layers if request.layers else tuple(sorted(self.calibration.layers))
        return replace(more, layers=layers, refine_steps=REFINE_STEPS)

    def _attempt(
        self, request: WriteRequest, config: PlasticityConfig, study: Study, number: int, watch: Stopwatch
    ) -> Consolidated:
        if not study.training:
            raise UnreadableFact(
                "the model cannot answer questions about this fact even with the fact in its context",
                self._report(request, config, study, watch, attempts=number),
            )
        self._tell(Step.WRITE)
        with watch.stage("write"):
            weights = self._weights(request, config, study)
        self._tell(Step.VERIFY)
        with watch.stage("verify"):
            report, asked = self.verify(request, config, study, weights, watch, number)
        if request.strategy != "modulation":
            if report.recall_after < config.min_recall:
                raise NotRecalled("the fact was not recalled on held-out wordings", report)
            if report.locality < config.min_locality:
                raise NotRecalled("the fact was recalled, but changed answers to other questions", report)
        return Consolidated(weights, report, asked, study.held_out, study.subject)

    @torch.no_grad()
    def question_keys(self, prompt: str, bank: Bank, version: int) -> dict[int, Tensor]:
        """Keys `[1, p]` of the last token of `prompt`, as `version` of `bank` computes them, in each layer
        that can hold columns.
        """
        ids = self.template.encode(self.template.with_context(prompt, []))
        states = self.passes.read([ids], sorted(self.calibration.layers), [[len(ids) - 1]], bank, version)
        return {i: self.calibration.whitening[i].key(z) for i, z in states.keys.items()}

    @torch.no_grad()
    def recall_together(self, facts: Sequence[Consolidated]) -> list[float]:
        """Recall of each fact on its held-out wordings where all of them are known at once."""
        trial = Bank(self.model, self.calibration.whitening)
        trial.publish(1, {f"trial {number}": fact.weights for number, fact in enumerate(facts)})
        return [self.recall(fact.held_out, trial) for fact in facts]

    def recall(self, probes: Sequence[AlignedProbe], bank: Bank) -> float:
        """Share of `probes` that are answered right by the model with `bank`."""
        return recall(probes, answered(self.passes, probes, bank=bank))

    def disturbed(self, facts: Sequence[Consolidated]) -> dict[int, NotRecalled]:
        """Those of `facts`, by number, that are recalled worse beside the others than alone."""
        return {
            number: NotRecalled(
                "the fact was not recalled beside the others", replace(fact.report, recall_after=recall)
            )
            for number, (fact, recall) in enumerate(zip(facts, self.recall_together(facts), strict=True))
            if recall < fact.report.recall_after
        }

    def studies(self, requests: Sequence[WriteRequest]) -> list[Study]:
        """The first study of each fact."""
        return self._studies(requests, self.config, [r.seed for r in requests])

    def study(self, request: WriteRequest, config: PlasticityConfig, seed: int) -> Study:
        """Self-study: probes written, answered by the teacher, filtered, and split."""
        (made,) = self._studies([request], config, [seed])
        return made

    def _studies(
        self, requests: Sequence[WriteRequest], config: PlasticityConfig, seeds: Sequence[int]
    ) -> list[Study]:
        if not requests:
            return []
        self._tell(Step.STUDY)
        template, facts = self.template, [r.fact for r in requests]
        count, temperature = config.questions, config.temperature
        written = write_questions(self.passes, template, facts, count, seeds, temperature)
        probes = [
            candidates(template, r.fact, [*r.questions, *asked], [r.fact, *statements])
            for r, (asked, statements) in zip(requests, written, strict=True)
        ]
        answers = iter(self._taught_answers(facts, probes))
        made = []
        for request, (asked, _), tried, seed in zip(requests, written, probes, seeds, strict=True):
            given = {probe: next(answers) for probe in tried}
            layers = request.layers or config.layers
            questions = {q.question for q in (*request.questions, *asked)}
            made.append(self._study(request, given, questions, layers, config.held_out, seed))
        return made

    def _taught_answers(self, facts: Sequence[str], probes: Sequence[Sequence[Probe]]) -> list[list[int]]:
        """What the model answers to each probe with its fact in the context."""
        prompts = [
            self._encoded(probe.prompt, [fact])
            for fact, tried in zip(facts, probes, strict=True)
            for probe in tried
        ]
        groups = [k for k, tried in enumerate(probes) for _ in tried]
        decoding = Decoding(MAX_PROBE_TOKENS, self.template.eos_token_ids, batch_size=STUDY_BATCH)
        return self.passes.decode(prompts, decoding, groups=groups)

    def _encoded(self, prompt: str, context: Sequence[str] = ()) -> list[int]:
        self._pause()  # dozens of prompts take as long as a step
        return self.template.encode(self.template.with_context(prompt, context))

    def _study(
        self,
        request: WriteRequest,
        written: Mapping[Probe, list[int]],
        questions: Collection[str],
        layers: Sequence[int],
        held_out: float,
        seed: int,
    ) -> Study:
        template, fact = self.template, request.fact
        given = {q.question: bare(q.answer) for q in request.questions}
        answered = {
            probe: text
            for probe, text in ((p, template.decode(ids)) for p, ids in written.items())
            # The caller knows the answer to the caller's questions.
            if accepted(probe, text, fact) and given.get(probe.wording, bare(text)) in bare(text)
        }
        aligned = {
            replace(probe, answer=text): self._aligned(fact, probe, written[probe])
            for probe, text in consistent(answered, questions).items()
        }
        if not aligned:
            return Study((), (), (), States((), torch.empty(0), {}, {}), len(written), 0, None)
        training, held = split(list(aligned), held_out, Random(seed))
        answers_given = [trimmed(probe.answer) for probe in aligned]
        lessons = tuple(aligned[p] for p in training)
        answer = max(dict.fromkeys(answers_given), key=answers_given.count)
        return Study(
            lessons,
            tuple(aligned[p] for p in held),
            tuple(training),
            taught(self.passes, lessons, layers),
            len(written),
            len(aligned),
            answer,
            subject({probe.wording for probe in aligned}, fact, answer),
        )

    def _aligned(self, fact: str, probe: Probe, answer: Sequence[int]) -> AlignedProbe:
        self._pause()
        return align(self.template, fact, probe.prompt, answer)

    def _weights(self, request: WriteRequest, config: PlasticityConfig, study: Study) -> FactWeights:
        if request.strategy == "modulation":
            return modulation_weights(self.model, self.template, request)
        learned = lesson(self.passes, study.training, study.teacher, config.layers)
        foreign = self._foreign_keys(request, config, study)
        weights = write(
            self.model, self.calibration, config, learned, foreign, self._pause, self._tell_of_leak_check
        )
        if config.refine_steps:
            whitening = self.calibration.whitening
            weights = refine(self.model, whitening, weights, study.training, config.refine_steps)
        if request.strategy == "ridge":
            strength = config.ridge_lambda / max(request.strength, 1e-6)
            return ridge_weights(weights, self.calibration, strength)
        return scaled(weights, request.strength)

    def _tell_of_leak_check(self) -> None:
        self._tell(Step.LEAK_CHECK)

    def _foreign_keys(
        self, request: WriteRequest, config: PlasticityConfig, study: Study
    ) -> dict[int, Tensor]:
        """Keys of prompts that look like the fact's own but name somebody else."""
        prompts = look_alikes(request.fact, study.prompts, Random(request.seed), config.look_alikes)
        rows = [self._encoded(prompt) for prompt in prompts]
        rows = [row for row in rows if len(row) <= self.model.config.max_position_embeddings]
        statistics = self.calibration.layers
        if not rows:
            return {i: statistics[i].reference[:0] for i in config.layers}
        states = self.passes.read(rows, config.layers, [[len(row) - 1] for row in rows])
        return {i: statistics[i].whitening.key(states.keys[i]) for i in config.layers}

    def verify(
        self,
        request: WriteRequest,
        config: PlasticityConfig,
        study: Study,
        weights: FactWeights,
        watch: Stopwatch,
        number: int,
    ) -> tuple[WriteReport, dict[int, Tensor]]:
        """Recall on the held-out wordings before and after, and locality, all on trial weights; and the keys
        of those wordings, `[n, p]` by layer, where their answers begin.
        """
        trial = Bank(self.model, self.calibration.whitening)
        before = answered(self.passes, study.held_out, sorted(self.calibration.layers))
        trial.publish(1, {"trial": weights})
        if weights.factors:
            locality, drift = self.changed_answers(trial)
        else:
            locality, drift = self._disturbance(weights)
        report = replace(
            self._report(request, config, study, watch, number),
            recall_before=recall(study.held_out, before),
            recall_after=self.recall(study.held_out, trial),
            locality=locality,
            drift=drift,
            layers=tuple(sorted({*weights.columns, *(layer for layer, _ in weights.factors)})),
            columns=weights.num_columns,
            bytes=sum(t.numel() * t.element_size() for t in weights.to_tensors().values()),
        )
        return report, self._beginnings(study.held_out, before)

    def _beginnings(self, probes: Sequence[AlignedProbe], states: States) -> dict[int, Tensor]:
        first = states.at([(row, p.positions(p.student)[0]) for row, p in enumerate(probes)])
        return {i: self.calibration.whitening[i].key(z[first]) for i, z in states.keys.items()}

    def changed_answers(self, trial: Bank) -> tuple[float, float]:
        """As `_disturbance`, for factors, which touch every token: by running the locality set."""
        rows = self.calibration.locality_ids
        lengths = [len(row) for row in rows]
        after = self.passes.read(rows, bank=trial).logits.argmax(-1).split(lengths)
        kept, changed, total = 0, 0, 0
        for ids, said, now in zip(rows, self._said.split(lengths), after, strict=True):
            answer = len(ids) - 1
            while answer > 0 and said[answer - 1] == ids[answer]:
                answer -= 1
            differs = said != now
            kept += not bool(differs[answer:].any())
            changed, total = changed + int(differs.sum()), total + len(ids)
        return kept / len(rows), changed / total

    @cached_property
    def _said(self) -> Tensor:
        """The untouched model's next token after each token of the locality set, `[tokens]`."""
        return self.passes.read(self.calibration.locality_ids).logits.argmax(-1)

    def _disturbance(self, weights: FactWeights) -> tuple[float, float]:
        """Share of locality prompts on which no column fires, and share of their tokens that one
        does.

        Where no column fires, the output is the same bit for bit: no pass is needed to know it.
        """
        calibration = self.calibration
        hit = torch.zeros(len(calibration.locality_owner), dtype=torch.bool)
        for index, columns in weights.columns.items():
            scores = calibration.layers[index].locality @ columns.keys.T
            hit |= (scores > columns.thresholds).any(dim=1)
        touched = len(set(calibration.locality_owner[hit].tolist()))
        return 1 - touched / calibration.locality_rows, float(hit.float().mean())

    def _report(
        self,
        request: WriteRequest,
        config: PlasticityConfig,
        study: Study,
        watch: Stopwatch,
        attempts: int,
    ) -> WriteReport:
        return WriteReport(
            strategy=request.strategy,
            teacher_recall=study.kept / study.written if study.written else 0.0,
            layers=config.layers,
            answer=study.answer,
            probes={
                "written": study.written,
                "answered": study.kept,
                "training": len(study.training),
                "held_out": len(study.held_out),
            },
            attempts=attempts,
            timings=watch.seconds,
        )

    def _check(self, request: WriteRequest) -> None:
        if not request.fact.strip():
            raise InvalidRequest("fact", "is empty")
        length = len(self.template.encode(self.template.with_context(request.fact, [request.fact])))
        limit = self.model.config.max_position_embeddings // 2
        if length > limit:
            raise InvalidRequest("fact", f"takes {length} tokens with its context; the limit is {limit}")
        if request.strategy not in STRATEGIES:
            raise InvalidRequest("strategy", f"must be one of {', '.join(STRATEGIES)}")
        if request.alpha is not None and not 0 < request.alpha <= 1:
            raise InvalidRequest("alpha", f"must be above 0 and at most 1, not {request.alpha}")
        if request.preset is not None and request.preset not in PRESETS:
            raise InvalidRequest("preset", f"must be one of {', '.join(PRESETS)}")
        if request.strategy == "modulation":
            checked_ids(self.template, request)
        self._check_layers(request)

    def _check_layers(self, request: WriteRequest) -> None:
        if request.layers is None:
            return
        total = self.model.config.num_hidden_layers
        modulated = request.strategy == "modulation"
        allowed: Sequence[int] = range(total) if modulated else sorted(self.calibration.layers)
        wrong = [i for i in request.layers if i not in allowed]
        if wrong or not request.layers:
            raise InvalidRequest("layers", f"{wrong or 'none'}: choose from {list(allowed)}")
        if len(set(request.layers)) < len(request.layers):
            raise InvalidRequest("layers", f"{list(request.layers)} names a layer twice")


__all__ = ["Consolidator", "Lesson", "Study"]
