"""How far ordinary text has moved: KL and perplexity on documents that nothing else has seen."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Self

import torch
from torch import Tensor

from npt_core.bank import FactWeights, Whitening
from npt_core.consolidation.states import run
from npt_core.evaluation.journal import Metrics
from npt_core.evaluation.speaker import logits
from npt_core.generation import right_padded
from npt_core.model import NPTForCausalLM
from npt_core.prompts import PromptTemplate
from npt_core.training.corpus import CorpusConfig, documents
from npt_core.training.data import document_ids

DOCUMENT_SEED = 970_001
CHUNK = 8
WIKI_CHARACTERS = 600


@dataclass(frozen=True)
class TextChange:
    """Sums over the predicted tokens of some rows."""

    kl: float = 0.0
    loss: float = 0.0
    """Change of the negative log-likelihood."""

    def __add__(self, other: Self) -> "TextChange":
        return TextChange(self.kl + other.kl, self.loss + other.loss)


@dataclass
class HeldOutText:
    """Token rows, and the model that never learned anything."""

    base: NPTForCausalLM
    rows: Sequence[Sequence[int]]
    whitening: Mapping[int, Whitening]
    _keys: dict[int, list[Tensor]] = field(default_factory=dict, repr=False)

    def first(self, count: int) -> "HeldOutText":
        """The first rows alone."""
        return HeldOutText(self.base, self.rows[:count], self.whitening)

    @property
    def tokens(self) -> int:
        """Predicted tokens."""
        return sum(len(row) - 1 for row in self.rows)

    def base_perplexity(self) -> float:
        """Of the untouched model."""
        loss = sum(_losses(logits(self.base, right_padded([r])), [r])[0] for r in self.rows)
        return float(torch.tensor(loss / self.tokens).exp())

    def change(
        self, model: NPTForCausalLM, version: int | None = None, only: Collection[int] | None = None
    ) -> Metrics:
        """`kl` in nats per token, relative `perplexity`; rows outside `only` have not moved."""
        chosen = sorted(range(len(self.rows)) if only is None else only, key=lambda i: len(self.rows[i]))
        total = TextChange()
        for start in range(0, len(chosen), CHUNK):
            total += self._chunk(model, [self.rows[i] for i in chosen[start : start + CHUNK]], version)
        rise = torch.tensor(total.loss / self.tokens).expm1()
        return {"kl": total.kl / self.tokens, "perplexity": float(rise)}

    def _chunk(self, model: NPTForCausalLM, rows: Sequence[Sequence[int]], version: int | None) -> TextChange:
        ids = right_padded(rows)
        before, after = logits(self.base, ids), logits(model, ids, version)
        if torch.equal(before, after):
            return TextChange()
        old, new = (torch.log_softmax(x.float(), -1) for x in (before, after))
        divergence = (old.exp() * (old - new)).sum(-1)
        kl = sum(float(divergence[k, : len(row) - 1].sum()) for k, row in enumerate(rows))
        return TextChange(kl, sum(_losses(after, rows)) - sum(_losses(before, rows)))

    def touched(self, weights: FactWeights) -> set[int]:
        """The rows on which a column of `weights`, alone, fires in some layer.

        The lowest layer in which one fires sees untouched activations: other rows do not move.
        """
        found: set[int] = set()
        for layer, columns in weights.columns.items():
            for row, keys in enumerate(self._keys_of(layer)):
                if row not in found and bool((keys @ columns.keys.T > columns.thresholds - 1e-4).any()):
                    found.add(row)
        return found

    def _keys_of(self, layer: int) -> list[Tensor]:
        if layer not in self._keys:
            whitening = self.whitening[layer]
            self._keys[layer] = [
                whitening.key(run(self.base, [row], [layer]).keys[layer]) for row in self.rows
            ]
        return self._keys[layer]


def _losses(scores: Tensor, rows: Sequence[Sequence[int]]) -> list[float]:
    """Negative log-likelihood of each row."""
    return [
        float(
            torch.nn.functional.cross_entropy(
                scores[k, : len(row) - 1].float(), torch.tensor(row[1:]), reduction="sum"
            )
        )
        for k, row in enumerate(rows)
    ]


def corpus_rows(template: PromptTemplate, count: int, limit: int) -> list[list[int]]:
    """Synthetic documents in the training wordings, of a seed of their own."""
    made = islice(documents(DOCUMENT_SEED, CorpusConfig()), count)
    return [document_ids(template, d)[:limit] for d in made]


def wiki_rows(template: PromptTemplate, corpus: CorpusConfig, count: int, limit: int) -> list[list[int]]:
    """Beginnings of encyclopedia articles; empty where there is no data."""
    texts = corpus.natural_texts()
    chosen = Random("evaluation/wiki").sample(texts, min(count, len(texts)))
    return [template.encode(text[:WIKI_CHARACTERS])[:limit] for text in chosen]
