"""One checkpoint under measurement: the untouched model, one to edit, and the instruments."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from npt_core.consolidation import Calibration, Consolidator
from npt_core.consolidation.states import private_copy
from npt_core.evaluation.config import EvaluationConfig
from npt_core.evaluation.drift import HeldOutText, corpus_rows, wiki_rows
from npt_core.evaluation.exam import Exam, Examiner, exam
from npt_core.evaluation.journal import Metrics
from npt_core.evaluation.speaker import Speaker
from npt_core.evaluation.writing import FactSet
from npt_core.loading import Runtime
from npt_core.model import NPTForCausalLM
from npt_core.prompts import PromptTemplate
from npt_core.training.corpus import CorpusConfig


@dataclass(frozen=True)
class Workbench:
    """`speaker` answers with the private model, which protocols edit; `examiner` knows the base."""

    config: EvaluationConfig
    consolidator: Consolidator
    speaker: Speaker
    examiner: Examiner
    texts: dict[str, HeldOutText]

    @classmethod
    def of(cls, runtime: Runtime, config: EvaluationConfig) -> "Workbench":
        """The workbench of a loaded checkpoint, whose own model and bank stay as they are."""
        base = Speaker(private_copy(runtime.model), runtime.template, config.batch, config.max_new_tokens)
        speaker = replace(base, model=private_copy(runtime.model))
        return cls(config, runtime.consolidator, speaker, Examiner(base), _texts(runtime, base, config))

    @property
    def model(self) -> NPTForCausalLM:
        """The private model."""
        return self.speaker.model

    @property
    def template(self) -> PromptTemplate:
        """How prompts are written for this checkpoint."""
        return self.speaker.template

    @property
    def calibration(self) -> Calibration:
        """The checkpoint's second moments and key spaces."""
        return self.consolidator.calibration

    def paper(self, learned: FactSet, count: int) -> Exam:
        """The exam of the first `count` facts, of the configured size."""
        config = self.config
        return exam(learned.facts[:count], self.template, config.bystanders, learned.name, config.asked)

    def drift(self, version: int | None = None, only: Sequence[int] | None = None) -> Metrics:
        """`kl` and `perplexity` of the private model; `..._wiki` on natural text, if any."""
        found: Metrics = {}
        for name, text in self.texts.items():
            suffix = "" if name == "corpus" else f"_{name}"
            change = text.change(self.model, version, only)
            found |= {f"{metric}{suffix}": value for metric, value in change.items()}
        return found

    def examined(self, exam: Exam, refused: frozenset[int], version: int | None = None) -> Metrics:
        """Recall, paraphrase, locality and drift of the private model."""
        return {
            **self.examiner.recall(self.speaker, exam.asked, version, refused),
            **self.examiner.locality(self.speaker, exam.bystanders, version),
            **self.drift(version),
        }


def _texts(runtime: Runtime, base: Speaker, config: EvaluationConfig) -> dict[str, HeldOutText]:
    limit = runtime.max_positions // 2
    corpus = CorpusConfig(data=config.data)
    rows = {
        "corpus": corpus_rows(base.template, config.documents, limit),
        "wiki": wiki_rows(base.template, corpus, config.documents, limit),
    }
    whitening = runtime.consolidator.calibration.whitening
    return {name: HeldOutText(base.model, found, whitening) for name, found in rows.items() if found}
