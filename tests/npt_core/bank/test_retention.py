"""Versions that nobody can ask for any more, and what they alone needed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from npt_core.bank import Bank, BankError
from npt_core.bank.rows import SLACK
from tests.npt_core.bank.test_bank import FEW, bank_of, fact, histories, logits, logits_of, play


def rows(bank: Bank) -> int:
    return sum(len(layer.columns) for layer in bank.layers)


@FEW
@given(histories, st.integers(0, 20), st.integers(0, 20))
def test_retiring_changes_no_bit_of_what_is_kept(history: list[set[str]], oldest: int, held: int) -> None:
    bank, seen = play(history)
    bank.retire(oldest, lambda: held)
    assert bank.oldest == min(oldest, bank.version)
    for version, alive in seen.items():
        if version >= min(bank.oldest, held):
            assert torch.equal(logits(bank, version), logits_of(alive))
            assert bank.num_columns(version) == sum(fact(n).num_columns for n in alive)


@FEW
@given(histories)
def test_memory_follows_what_the_newest_version_sees(history: list[set[str]]) -> None:
    bank, _ = play(history)
    for step in range(3):
        bank.retire(bank.version)
        assert (SLACK - 1) * rows(bank) <= SLACK * bank.num_columns()
        change = bank.version + 1
        bank.publish(change, {f"new{step}": fact("A")}, sorted(bank.facts)[:1])


def test_reader_of_a_retired_version_is_refused_alone_or_in_a_batch() -> None:
    bank = bank_of("A", "B")
    bank.publish(2, {}, ["A"])
    bank.retire(2)
    for version in (1, torch.tensor([2, 1, 2])):
        with pytest.raises(BankError, match="version 1 is retired, the oldest is 2"):
            logits(bank, version)
    assert torch.equal(logits(bank, torch.tensor([2, 2, 2])), logits_of(frozenset("B")))


def test_what_readers_hold_is_asked_after_new_ones_are_refused() -> None:
    bank = bank_of("A")
    bank.publish(2, {}, ["A"])
    asked = []
    bank.retire(2, lambda: asked.append(bank.oldest))
    assert asked == [2]


def test_retired_versions_do_not_come_back() -> None:
    bank = bank_of("A")
    bank.publish(2, {}, ["A"])
    bank.retire(2)
    bank.retire(0)
    assert bank.oldest == 2
    bank.retire(99)
    assert bank.oldest == 2


def test_facts_of_a_retired_version_can_be_published_again() -> None:
    bank = bank_of("A", "B")
    bank.publish(2, {}, ["A", "B"])
    bank.retire(2)
    assert rows(bank) == 0
    bank.publish(3, {n: fact(n) for n in "AB"})
    assert torch.equal(logits(bank), logits_of(frozenset("AB")))
