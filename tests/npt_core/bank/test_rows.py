from __future__ import annotations

import torch

from npt_core.bank.rows import ALIVE, SLACK, Birth, Rows
from npt_core.bank.vector import Vector


def table(*births: tuple[int, int]) -> Rows:
    """Rows of `(owner, count)`, one birth a version from 1 on; a row's number is its place."""
    rows, place = Rows.of([Vector.of(torch.zeros(0, 1))]), 0
    for version, (owner, count) in enumerate(births, start=1):
        numbers = torch.arange(place, place + count, dtype=torch.float32)[:, None]
        rows, place = rows.joined([Birth(owner, owner, version, (numbers,))]), place + count
    return rows


def test_reader_of_an_older_table_sees_it_as_it_was() -> None:
    old = table((0, 2), (1, 3))
    new = old.ended([0], 3).extended((torch.full((1, 1), 9.0),), 2, 3)
    assert old.tensors[0].flatten().tolist() == [0, 1, 2, 3, 4]
    assert old.died.rows.tolist() == [ALIVE] * 5
    assert new.tensors[0].flatten().tolist() == [0, 1, 2, 3, 4, 9]
    assert new.died.rows.tolist() == [3, 3, ALIVE, ALIVE, ALIVE, ALIVE]
    assert new.tensors[0].data_ptr() == old.tensors[0].data_ptr()


def test_what_has_died_dies_no_second_time() -> None:
    rows = table((0, 1)).ended([0], 2).extended((torch.zeros(1, 1),), 0, 3).ended([0], 5)
    assert rows.died.rows.tolist() == [2, 5]


def test_table_is_the_same_object_where_nothing_changes() -> None:
    rows = table((0, 1))
    assert rows.ended([7], 2) is rows
    assert rows.ended([], 2) is rows
    assert rows.joined([]) is rows


def test_rows_are_dropped_once_no_retained_version_sees_them() -> None:
    rows = table((0, 2), (1, 2), (2, 2)).ended([1], 4)
    assert rows.retained(3) is rows
    kept = rows.retained(4)
    assert kept.tensors[0].flatten().tolist() == [0, 1, 4, 5]
    assert kept.born.rows.tolist() == [1, 1, 3, 3]
    assert [kept.born_by(v) for v in (0, 1, 2, 3)] == [0, 2, 2, 4]
    assert torch.equal(kept.visible(4), torch.ones(4, dtype=torch.bool))


def test_few_dead_rows_are_not_worth_a_copy() -> None:
    rows = table((0, 1), (1, 2 * SLACK)).ended([0], 3)
    assert rows.retained(10) is rows
