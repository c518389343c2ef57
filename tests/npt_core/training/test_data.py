from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from npt_core.training.corpus import CorpusConfig, Span
from npt_core.training.data import PackedRows, encode_document
from tests.npt_core.tiny import tokenizer


@pytest.fixture
def rows() -> PackedRows:
    return rows_of()


def rows_of(**changes: int) -> PackedRows:
    return replace(PackedRows(tokenizer(), CorpusConfig(), 3, 40, seed=5), **changes)


def same(a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return all(map(torch.equal, a, b))


def test_a_batch_is_full_rows_of_ids_and_weights(rows: PackedRows) -> None:
    ids, weights = rows.batch_number(0)
    assert ids.shape == weights.shape == (3, 40)
    assert ids.dtype == torch.int64
    assert weights.dtype == torch.float32
    assert 0 <= int(ids.min()) <= int(ids.max()) < len(tokenizer())
    assert (ids[:, 0] == tokenizer().bos_token_id).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 1000))
def test_a_batch_is_a_function_of_seed_and_number(seed: int, number: int) -> None:
    rows = rows_of(seed=seed)
    batch = rows.batch_number(number)
    rows.batch_number(number + 7)  # what was drawn before does not matter
    assert same(rows.batch_number(number), batch)
    assert same(rows_of(seed=seed).batch_number(number), batch)
    assert not same(rows.batch_number(number + 1), batch)
    assert not same(rows_of(seed=seed + 1).batch_number(number), batch)


def test_a_resumed_run_gets_the_batches_it_has_not_seen(rows: PackedRows) -> None:
    whole = list(islice(rows, 5))
    resumed = list(islice(rows_of(start=2), 3))
    assert all(map(same, whole[2:], resumed))


def test_processes_share_the_batches_of_one_without_overlap(rows: PackedRows) -> None:
    whole = list(islice(rows, 6))
    for rank in (0, 1, 2):
        part = list(islice(rows_of(rank=rank, world=3), 2))
        assert all(map(same, part, whole[rank::3]))


def test_processes_resume_where_they_stopped(rows: PackedRows) -> None:
    whole = list(islice(rows, 8))
    resumed = list(islice(rows_of(rank=1, world=2, start=2), 2))
    assert all(map(same, resumed, [whole[5], whole[7]]))


def test_a_document_is_encoded_span_by_span_with_its_weights() -> None:
    t = tokenizer()
    ids, weights = encode_document(t, [Span("Context: ", 0.0), Span("A b.", 0.5, ends=True)])
    head, tail = (t.encode(x, add_special_tokens=False) for x in ("Context: ", "A b."))
    assert ids == [t.bos_token_id, *head, *tail, t.eos_token_id]
    assert weights == [0.0] * (1 + len(head)) + [0.5] * (len(tail) + 1)
