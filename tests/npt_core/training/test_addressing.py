from __future__ import annotations

import math
from itertools import islice

import pytest
import torch
from torch import Tensor

from npt_core.prompts import UNKNOWN_ANSWER, PlainTemplate
from npt_core.training.addressing import (
    OFFSETS,
    WORDINGS,
    AddressedRows,
    AddressingConfig,
    AddressingLoss,
    contrast,
)
from npt_core.training.corpus import CorpusConfig
from npt_core.training.data import PackedRows
from npt_core.training.equivalence import EquivalenceConfig, EquivalenceLoss
from tests.npt_core.tiny import new_llama, new_npt, tokenizer

CONFIG = AddressingConfig(layers=(0, 1), groups=2, length=110)


def addressed() -> AddressedRows:
    return AddressedRows(PackedRows(tokenizer(), CorpusConfig(), batch=2, length=24, seed=1), CONFIG)


def test_rows_of_a_class_end_in_the_same_answer_after_different_prompts() -> None:
    ids, starts, classes = addressed().key_rows(0)
    assert ids.shape == (2 * sum(WORDINGS), CONFIG.length)
    assert classes.shape == (len(ids), OFFSETS)
    answers: dict[int, set[int]] = {}
    for row, start, names in zip(ids.tolist(), starts.tolist(), classes.tolist(), strict=True):
        for k, name in enumerate(names):
            if name >= 0 and k + 1 < OFFSETS and names[k + 1] >= 0:
                answers.setdefault(name, set()).add(row[start + 1 + k])
    assert answers
    assert all(len(tokens) == 1 for tokens in answers.values())
    assert len({tuple(row) for row in ids.tolist()}) > len(ids) // 2


def test_a_batch_is_a_function_of_its_number() -> None:
    first = list(islice(addressed(), 3))
    later = addressed()
    later.place(2, 0, 1)
    assert all(torch.equal(a, b) for a, b in zip(first[2], next(iter(later)), strict=True))
    other = addressed()
    other.place(1, 0, 2)  # process 0 of 2 takes batch 2 next, too
    assert all(torch.equal(a, b) for a, b in zip(first[2], next(iter(other)), strict=True))
    assert not torch.equal(first[0][2], first[1][2])


def reference_contrast(keys: Tensor, anchors: int, classes: list[int], temperature: float) -> float:
    """The formula of the module's docstring, one pair at a time."""
    present = [j for j in range(len(keys)) if j >= anchors or classes[j] >= 0]
    terms = []
    for i in range(anchors):
        for p in range(anchors):
            if i == p or classes[i] < 0 or classes[i] != classes[p]:
                continue
            others = [float(keys[i] @ keys[j]) / temperature for j in present if j != i]
            share = float(keys[i] @ keys[p]) / temperature - math.log(sum(map(math.exp, others)))
            terms.append(-share)
    return sum(terms) / len(terms)


def test_the_contrastive_loss_follows_its_formula() -> None:
    r = torch.Generator().manual_seed(0)
    z, ordinary = torch.randn(6, 9, generator=r), torch.randn(3, 9, generator=r)
    head = torch.randn(9, 5, generator=r)
    classes = [0, 0, 1, 1, -1, 0]
    every = torch.cat([z, ordinary])
    keys = torch.nn.functional.normalize((every - every.mean(0)) @ head, dim=-1).double()
    wanted = reference_contrast(keys, 6, classes, 0.5)
    found = contrast(z, ordinary, head, torch.tensor(classes), 0.5)
    assert float(found) == pytest.approx(wanted, rel=1e-4)


def test_rows_without_a_pair_cost_nothing() -> None:
    z, head = torch.randn(3, 4), torch.randn(4, 2)
    assert float(contrast(z, z[:0], head, torch.tensor([-1, 0, 1]), 0.1)) == 0.0


def test_training_brings_wordings_together_and_keeps_not_knowing() -> None:
    torch.manual_seed(0)
    template = PlainTemplate(tokenizer())
    student = new_npt(0)
    equivalence = EquivalenceLoss(student, new_llama(7), EquivalenceConfig())
    loss = AddressingLoss(equivalence, student, template, CONFIG)
    assert UNKNOWN_ANSWER.startswith(template.decode([loss.unknown]).strip())
    batch = next(iter(addressed()))
    optimizer = torch.optim.AdamW(loss.parameters(), lr=3e-3)
    history = []
    for _ in range(25):
        terms = loss(*batch)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        history.append({name: float(value.detach()) for name, value in terms.items()})
    for name in ("address", "unknown", "ce"):
        assert history[-1][name] < 0.7 * history[0][name], name


def test_the_heads_are_trained_and_the_teacher_is_not() -> None:
    student = new_npt(0)
    equivalence = EquivalenceLoss(student, new_llama(7), EquivalenceConfig())
    loss = AddressingLoss(equivalence, student, PlainTemplate(tokenizer()), CONFIG)
    names = {name for name, p in loss.named_parameters() if p.requires_grad}
    assert {"heads.0", "heads.1"} <= names
    assert sum(name.startswith("phase.student.") for name in names) == len(names) - 2
