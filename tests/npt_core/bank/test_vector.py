from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from npt_core.bank import vector as module
from npt_core.bank.vector import LEAST_CAPACITY, Vector


@pytest.fixture(scope="module", autouse=True)
def _prepared_early() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "AHEAD", 32)
        yield


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 40)), max_size=30))
def test_every_vector_keeps_its_rows_whatever_is_made_of_it(steps: list[tuple[int, int]]) -> None:
    """Extensions of any earlier vector (mostly the last), against plain concatenation."""
    made = [(Vector.of(torch.zeros(0, 3)), torch.zeros(0, 3))]
    for number, (parent, count) in enumerate(steps):
        vector, rows = made[parent % len(made) if parent < 20 else -1]
        new = torch.full((count, 3), float(number))
        made.append((vector.extended(new), torch.cat([rows, new])))
    for vector, rows in made:
        assert torch.equal(vector.rows, rows)
        assert len(vector) == len(rows)


def test_rows_are_written_into_spare_room_and_copied_only_when_it_doubles() -> None:
    vector, places = Vector.of(torch.zeros(0, 2)), []
    for _ in range(1000):
        vector = vector.extended(torch.ones(1, 2))
        places.append(vector.rows.data_ptr())
    assert len(dict.fromkeys(places)) == len({1 << (n - 1).bit_length() for n in range(LEAST_CAPACITY, 1001)})


def test_no_extension_copies_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    take = module._Store.take

    def counting(store: module._Store, rows: torch.Tensor, stop: int) -> None:
        copied[-1] += max(stop - store.used, 0)
        take(store, rows, stop)

    monkeypatch.setattr(module._Store, "take", counting)
    vector = Vector.of(torch.zeros(0, 2))
    for step in range(3000):
        copied.append(0)
        vector = vector.extended(torch.full((3, 2), float(step)))
    assert max(copied[32:]) <= 12
    assert torch.equal(vector.rows[:, 0], torch.arange(3000.0).repeat_interleave(3))


def test_second_extension_of_a_vector_does_not_write_into_the_first() -> None:
    vector = Vector.of(torch.zeros(0)).extended(torch.tensor([1.0]))
    first, second = vector.extended(torch.tensor([2.0])), vector.extended(torch.tensor([3.0]))
    assert first.rows.tolist() == [1.0, 2.0]
    assert second.rows.tolist() == [1.0, 3.0]


def test_gradients_reach_what_a_vector_was_extended_by() -> None:
    new = torch.ones(2, 3, requires_grad=True)
    Vector.of(torch.zeros(0, 3)).extended(new).rows.sum().backward()
    assert torch.equal(new.grad, torch.ones(2, 3))  # type: ignore[arg-type]


def test_vector_made_in_inference_mode_can_be_extended_outside() -> None:
    with torch.inference_mode():
        vector = Vector.of(torch.zeros(0, 2)).extended(torch.ones(1, 2))
    assert vector.extended(torch.ones(1, 2)).rows.shape == (2, 2)
