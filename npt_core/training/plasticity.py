"""The calibration text of the reference model: facts without context, documents, a locality set.

Seeds here are used for nothing else: neither training nor evaluation sees these texts.
"""

from dataclasses import dataclass
from itertools import islice
from random import Random

from npt_core.consolidation.calibration import CalibrationText, PromptRow
from npt_core.generation import Decoding, generate
from npt_core.model import NPTForCausalLM
from npt_core.prompts import PromptTemplate
from npt_core.training.corpus import CorpusConfig, documents
from npt_core.training.data import document_ids
from npt_core.training.facts import Fact, neighbour, random_fact, world

WORDINGS = 6
PROMPT_SEED, REFERENCE_SEED, LOCALITY_SEED = 90_001, 90_002, 90_003


@dataclass(frozen=True)
class CalibrationSizes:
    """How much text to measure; more reference tokens make the leak check stricter."""

    facts: int = 1500
    documents: int = 1200
    locality: int = 200


def calibration_text(
    model: NPTForCausalLM,
    template: PromptTemplate,
    corpus: CorpusConfig,
    sizes: CalibrationSizes = CalibrationSizes(),
) -> CalibrationText:
    """Texts for `npt_core.consolidation.calibrate`, with the model's own answers in the locality
    set.
    """
    limit = model.config.max_position_embeddings // 2
    reference = [
        document_ids(template, d)[:limit] for d in islice(documents(REFERENCE_SEED, corpus), sizes.documents)
    ]
    prompts = [template.encode(p) for p in _locality_prompts(Random(LOCALITY_SEED), template, sizes.locality)]
    answers = generate(model, prompts, Decoding(16, template.eos_token_ids))
    return CalibrationText(
        prompts=_prompt_rows(Random(PROMPT_SEED), template, sizes.facts),
        reference=reference,
        locality=[[*p, *a] for p, a in zip(prompts, answers, strict=True)],
    )


def _prompt_rows(r: Random, template: PromptTemplate, facts: int) -> list[PromptRow]:
    """Prompts that the model cannot answer, `WORDINGS` for each fact."""
    rows = []
    for number in range(facts):
        fact = random_fact(r)
        for _ in range(WORDINGS):
            prompt = template.with_context(question(fact, template, r), [])
            rows.append(PromptRow(template.encode(prompt), number))
    return rows


def question(fact: Fact, template: PromptTemplate, r: Random) -> str:
    """A question about `fact` in a random form, or one in four times a sentence to complete."""
    if r.random() < 0.25:
        wordings = list(fact.relation.wordings("statements", "train"))
        r.shuffle(wordings)
        for wording in wordings:
            if (text := fact.completion(wording)) is not None:
                return text
    asked = fact.question(r.choice(fact.relation.wordings("questions", "train")))
    return r.choice(template.question_forms(asked))


def _locality_prompts(r: Random, template: PromptTemplate, count: int) -> list[str]:
    """Known facts, unknown subjects, subjects that resemble known ones, and facts read from a
    context.
    """
    prompts = []
    for k in range(count):
        if k % 4 == 0:
            prompts.append(question(r.choice(world()), template, r))
        elif k % 4 == 1:
            prompts.append(question(random_fact(r), template, r))
        elif k % 4 == 2:
            prompts.append(question(neighbour(r.choice(world()), r), template, r))
        else:
            fact = random_fact(r)
            wording = r.choice(fact.relation.wordings("statements", "train"))
            prompts.append(template.with_context(question(fact, template, r), [fact.statement(wording)]))
    return prompts
