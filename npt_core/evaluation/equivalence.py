"""How close a converted model is to its teacher: perplexity, and reading fresh facts from a context."""

import json
from pathlib import Path
from typing import Any

import torch

from npt_core.checkpoint import resolve_folder
from npt_core.convert import load_model
from npt_core.evaluation.drift import corpus_rows
from npt_core.evaluation.exam import questions, random_facts, says, statements
from npt_core.evaluation.speaker import Speaker, logits
from npt_core.generation import right_padded
from npt_core.loading import load_tokenizer
from npt_core.prompts import PlainTemplate

EQUIVALENCE_SEED = "equivalence"


def compare_with_teacher(teacher: Path, model: Path, facts: int, documents: int) -> str:
    """Both models' perplexity and reading rate on the same held-out text and facts, as JSON.

    Reading: facts about new subjects in the context, asked in wordings held out of training, in every
    prompt form; answered by greedy generation.
    """
    folders = {"teacher": teacher, "model": model}
    found = {name: _measured(folder, facts, documents) for name, folder in folders.items()}
    old, new = found["teacher"], found["model"]
    return json.dumps(
        {
            **found,
            "perplexity_change": new["perplexity"] / old["perplexity"] - 1,
            "reading_ratio": new["reading"] / old["reading"] if old["reading"] else None,
        },
        indent=2,
    )


def _measured(source: Path, facts: int, documents: int) -> dict[str, Any]:
    folder = resolve_folder(source)
    model = load_model(folder, dtype=torch.float32, attn_implementation="sdpa")
    template = PlainTemplate(load_tokenizer(folder))
    rows = corpus_rows(template, documents, model.config.max_position_embeddings // 2)
    learned = random_facts(facts, EQUIVALENCE_SEED)
    sentences = statements(learned, EQUIVALENCE_SEED)
    items = [item for i, fact in enumerate(learned) for item in questions(i, fact, template)]
    speaker = Speaker(model, template)
    contexts = [[sentences[item.owner]] for item in items]
    answers = speaker.answers([item.prompt for item in items], contexts=contexts)
    right = sum(says(a, item.expected) for a, item in zip(answers, items, strict=True))
    return {"perplexity": _perplexity(model, rows), "reading": right / len(items), "prompts": len(items)}


def _perplexity(model: Any, rows: list[list[int]]) -> float:
    total, count = 0.0, 0
    for row in rows:
        ids = right_padded([row])
        scores = torch.log_softmax(logits(model, ids)[0, :-1].double(), -1)
        total -= float(scores.gather(-1, ids[0, 1:, None]).sum())
        count += len(row) - 1
    return float(torch.tensor(total / count).exp())
