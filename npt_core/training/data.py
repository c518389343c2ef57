"""Packed rows of token ids: batch number b is a function of (seed, b) alone, so a run resumes
exactly.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from npt_core.prompts import PromptTemplate
from npt_core.training.corpus import CorpusConfig, Document, documents


def encode_document(tokenizer: PreTrainedTokenizerFast, document: Document) -> tuple[list[int], list[float]]:
    """Ids with the start token, and the loss weight of each."""
    ids, weights = [tokenizer.bos_token_id], [0.0]
    for span in document:
        piece = tokenizer.encode(span.text, add_special_tokens=False)
        if span.ends:
            piece = [*piece, tokenizer.eos_token_id]
        ids += piece
        weights += [span.weight] * len(piece)
    return ids, weights


def document_ids(template: PromptTemplate, document: Document) -> list[int]:
    """The ids of a document as a model of `template` was trained on it, ends of answers included."""
    ids = template.encode("")
    start = len(ids)
    for span in document:
        ids += template.encode(span.text)[start:]
        if span.ends:
            ids.append(template.eos_token_ids[0])
    return ids


class Rows(IterableDataset[tuple[Tensor, ...]], ABC):
    """Endless batches for a training run."""

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Predicted tokens of one batch."""

    @abstractmethod
    def place(self, start: int, rank: int, world: int) -> None:
        """Begins at batch `start`, as process `rank` of `world`."""


@dataclass
class PackedRows(Rows):
    """Batches `(ids [batch, length] int64, weights [batch, length] float32)`, from batch `start`
    on.

    With several processes, process `rank` of `world` takes every world-th batch.
    """

    tokenizer: PreTrainedTokenizerFast
    config: CorpusConfig
    batch: int
    length: int
    seed: int
    start: int = 0
    rank: int = 0
    world: int = 1

    @property
    def tokens(self) -> int:
        """Predicted tokens of one batch."""
        return self.batch * (self.length - 1)

    def place(self, start: int, rank: int, world: int) -> None:
        """Begins at batch `start`, as process `rank` of `world`."""
        self.start, self.rank, self.world = start, rank, world

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        number = self.start
        while True:
            yield self.batch_number(number * self.world + self.rank)
            number += 1

    def batch_number(self, number: int) -> tuple[Tensor, Tensor]:
        """Batch `number` of the endless sequence."""
        source = documents(self.seed * 1_000_003 + number, self.config)
        rows = [self._row(source) for _ in range(self.batch)]
        return torch.tensor([ids for ids, _ in rows]), torch.tensor([w for _, w in rows])

    def _row(self, source: Iterator[Document]) -> tuple[list[int], list[float]]:
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) < self.length:
            more_ids, more_weights = encode_document(self.tokenizer, next(source))
            ids += more_ids
            weights += more_weights
        return ids[: self.length], weights[: self.length]
