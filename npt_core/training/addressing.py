"""Addressable keys: a model is trained so that a fact has one address, whatever the wording.

A fact is found again by the cosine between keys, the inputs of `down_proj` where an answer begins or goes
on. Language modelling alone does not make keys of one fact alike: a model that says "I don't know." needs
no trace of who was asked about. So the teacher and the student are trained with a supervised contrastive
loss beside their own (Khosla et al., 2020):

    L = -mean over anchors i, positives p of log(exp(k_i . k_p / t) / sum over j != i of exp(k_i . k_j / t))

Positives: the same fact and answer token asked in another wording or form. Negatives: the same relation of a
subject with a similar name, other relations of the same subject, other facts, and ordinary text. `k` is a
linear head of the activation, so that calibration, which is linear too, can find it again. The teacher needs
it as well: a student cannot both have such keys and the hidden states of a teacher that has not.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from npt_core.prompts import UNKNOWN_ANSWER, PlainTemplate
from npt_core.training.data import PackedRows, Rows
from npt_core.training.facts import (
    Fact,
    another_attribute,
    neighbour,
    random_fact,
    same_subject,
)

OFFSETS = 4
"""Positions of a row that are contrasted: the last prompt token, and the answer tokens after it."""
WORDINGS = (4, 2, 2, 2, 2)
"""Rows of the fact itself, of two resembling subjects, and of two other relations of the same subject."""
COMPLETIONS, QUOTED = 0.35, 0.5
"""Shares of the prompts that are sentences to complete, and of the facts with quoted answers that are asked
so alone: behind a quote the answer has tokens, and so keys, of its own.
"""
EVERY = 16
"""One token in this many of the ordinary rows is a negative."""


@dataclass(frozen=True)
class AddressingConfig:
    """What is contrasted, and how hard."""

    layers: tuple[int, ...] = (3, 4, 5)
    weight: float = 0.2
    width: int = 128
    temperature: float = 0.1
    groups: int = 10
    """Facts a batch, each with its look-alikes."""
    length: int = 40


@dataclass
class AddressedRows(Rows):
    """The batches of `packed`, each with rows for the contrastive loss.

    `(ids, weights, key_ids [n, length], starts [n], classes [n, OFFSETS])`: `starts` is each row's last
    prompt token; classes are equal where fact and answer token are, and -1 beyond the answer.
    """

    packed: PackedRows
    config: AddressingConfig

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        number = self.packed.start
        for ids, weights in self.packed:
            yield ids, weights, *self.key_rows(number * self.packed.world + self.packed.rank)
            number += 1

    @property
    def tokens(self) -> int:
        """Predicted tokens of one batch."""
        return self.packed.tokens

    def place(self, start: int, rank: int, world: int) -> None:
        """Begins at batch `start`, as process `rank` of `world`."""
        self.packed.place(start, rank, world)

    def key_rows(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """The contrastive rows of batch `number`."""
        r = Random(f"addressing/{self.packed.seed}/{number}")
        template = PlainTemplate(self.packed.tokenizer)
        ids, starts, classes = [], [], []
        for group in range(self.config.groups):
            for member, (fact, count) in enumerate(zip(_family(r), WORDINGS, strict=True)):
                name = (group * len(WORDINGS) + member) * OFFSETS
                quoted = bool(_cut(fact, quoted=True)) and r.random() < QUOTED
                for _ in range(count):
                    row, start = self._row(r, template, fact, quoted)
                    tail = len(row) - start
                    ids.append(F.pad(torch.tensor(row), (0, self.config.length - len(row))))
                    starts.append(start)
                    classes.append([name + k if k < tail else -1 for k in range(OFFSETS)])
        return torch.stack(ids), torch.tensor(starts), torch.tensor(classes)

    def _row(self, r: Random, template: PlainTemplate, fact: Fact, quoted: bool) -> tuple[list[int], int]:
        while True:
            prompt = template.encode(_prompt(r, fact, quoted))
            if len(prompt) + OFFSETS - 1 <= self.config.length:
                text = f"{fact.object}'." if quoted else f" {fact.object}."
                return [*prompt, *template.encode(text)[1:OFFSETS]], len(prompt) - 1
            fact, quoted = random_fact(r), False  # a name too long for the rows


def _family(r: Random) -> list[Fact]:
    """A fact, two resembling subjects (one has the same answer), and two other sides of the subject."""
    fact = random_fact(r)
    near = neighbour(fact, r)
    alike = Fact(neighbour(fact, r).subject, fact.relation, fact.object)
    return [fact, near, alike, same_subject(fact, r), another_attribute(fact, r)]


def _prompt(r: Random, fact: Fact, quoted: bool) -> str:
    """A question in a random form, or a sentence to complete; `quoted` ones end with the quote."""
    if quoted:
        return f"{r.choice(_cut(fact, quoted))} '"
    if r.random() < COMPLETIONS and (cut := _cut(fact, quoted)):
        return r.choice(cut)
    question = fact.question(r.choice(fact.relation.wordings("questions", "train")))
    return r.choice([*PlainTemplate.question_forms(question), PlainTemplate.inline_block(question)])


def _cut(fact: Fact, quoted: bool) -> list[str]:
    """The statements in training that end with the answer, cut before it."""
    wordings = [w for w in fact.relation.wordings("statements", "train") if ("'{o}'" in w) == quoted]
    return [text for w in wordings if (text := fact.completion(w)) is not None]


class AddressingLoss(nn.Module):
    """The loss of a phase, plus the contrastive one on keys, plus not knowing the facts of its rows.

    `phase(ids, weights)` returns named losses of `model`, `loss` among them.
    """

    def __init__(
        self, phase: nn.Module, model: nn.Module, template: PlainTemplate, config: AddressingConfig
    ) -> None:
        super().__init__()
        self.phase = phase
        self.config = config
        self.unknown = template.encode(f" {UNKNOWN_ANSWER}")[1]
        # In a list: its parameters are the phase's already.
        self._model: list[Any] = [model]
        width = self._model[0].config.intermediate_size
        heads = [torch.randn(width, config.width) / width**0.5 for _ in config.layers]
        self.heads = nn.ParameterList(heads)
        self._keys: list[Tensor] = []
        for index in config.layers:
            self._model[0].model.layers[index].mlp.down_proj.register_forward_pre_hook(self._keep)

    def _keep(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._keys.append(inputs[0])

    def forward(
        self, ids: Tensor, weights: Tensor, key_ids: Tensor, starts: Tensor, classes: Tensor
    ) -> dict[str, Tensor]:
        """`loss` and its terms; shapes as in `AddressedRows`."""
        self._keys.clear()
        losses = self.phase(ids, weights)
        ordinary = [z[:, ::EVERY].flatten(0, 1) for z in self._keys]
        self._keys.clear()
        model = self._model[0]
        hidden = model.model(key_ids, use_cache=False).last_hidden_state
        rows = torch.arange(len(key_ids), device=key_ids.device)
        targets = torch.full_like(starts, self.unknown)
        unknown = F.cross_entropy(model.lm_head(hidden[rows, starts]).float(), targets)
        at = starts[:, None] + torch.arange(OFFSETS, device=starts.device)
        terms = [
            contrast(
                z[rows[:, None], at].flatten(0, 1), other, head, classes.flatten(), self.config.temperature
            )
            for z, other, head in zip(self._keys, ordinary, self.heads, strict=True)
        ]
        address = torch.stack(terms).mean()
        loss = losses["loss"] + self.config.weight * (address + unknown)
        return {**losses, "loss": loss, "address": address, "unknown": unknown}


def contrast(z: Tensor, ordinary: Tensor, head: Tensor, classes: Tensor, temperature: float) -> Tensor:
    """The contrastive loss of activations `z` `[n, d_ffn]` of `classes` `[n]`, those below 0 left out;
    `ordinary` `[m, d_ffn]` are negatives only.
    """
    anchors = len(z)
    every = torch.cat([z, ordinary]).float()
    keys = F.normalize((every - every.mean(0)) @ head, dim=-1)
    scores = (keys[:anchors] @ keys.T) / temperature
    itself = torch.eye(anchors, len(every), dtype=torch.bool, device=z.device)
    absent = F.pad(classes < 0, (0, len(ordinary)))
    scores = scores.masked_fill(itself | absent, -1e4)
    alike = (classes[:, None] == classes) & (classes >= 0)[:, None] & ~itself[:, :anchors]
    log_share = scores[:, :anchors] - scores.logsumexp(-1, keepdim=True)
    return -(log_share * alike).sum() / alike.sum().clamp(min=1)
