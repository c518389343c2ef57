"""Recall explained: the numbers that `matches` tells are those that decide which column fires."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from npt_core.bank import Bank, FactWeights, Match, matched
from tests.npt_core.bank.test_bank import FEW, NAMES, fact, model, noise, whitening

KEYS = {i: torch.nn.functional.normalize(noise(40 + i, 6, 8), dim=-1) for i in (0, 1)}


def published(names: str) -> Bank:
    bank = Bank(model(), whitening())
    bank.publish(1, {name: fact(name) for name in names})
    return bank


def by_hand(weights: FactWeights, keys: dict[int, Tensor]) -> tuple[float, set[int]]:
    """The most that a column has to spare, and the rows on which one fires."""
    spare = {i: keys[i] @ c.keys.T - c.thresholds for i, c in weights.columns.items()}
    rows = {int(row) for s in spare.values() for row in (s > 0).any(1).nonzero()[:, 0]}
    return max(float(s.max()) for s in spare.values()), rows


@FEW
@given(st.sets(st.sampled_from(NAMES)))
def test_every_fact_is_told_with_its_nearest_column(names: set[str]) -> None:
    matches = published("".join(sorted(names))).matches(KEYS)
    assert {match.fact for match in matches} == names
    for match in matches:
        spare, rows = by_hand(fact(match.fact), KEYS)
        assert abs(match.cosine - match.threshold - spare) < 1e-5
        assert set(match.rows) == rows
        assert match.fires == bool(rows)


def test_a_bank_and_loose_weights_tell_the_same() -> None:
    loose = matched({name: fact(name) for name in NAMES}, KEYS)
    for one, other in zip(published(NAMES).matches(KEYS), loose, strict=True):
        assert (one.fact, one.layer, one.rows) == (other.fact, other.layer, other.rows)
        assert abs(one.cosine - other.cosine) < 1e-5


def test_matches_are_those_of_the_version() -> None:
    bank = published("AB")
    bank.publish(2, {"C": fact("C")}, ["A"])

    def seen(version: int | None) -> set[str]:
        return {match.fact for match in bank.matches(KEYS, version)}

    assert (seen(0), seen(1), seen(2), seen(None)) == (set(), {"A", "B"}, {"B", "C"}, {"B", "C"})


def test_what_fires_comes_first() -> None:
    own = {i: c.keys[:1] for i, c in fact("E").columns.items()}
    first, *_ = published(NAMES).matches(own)
    assert (first.fact, first.fires) == ("E", True)
    assert abs(first.cosine - 1) < 1e-5


@pytest.mark.parametrize("limit", [1, 3, 99])
def test_only_the_nearest_or_those_that_fire_are_told_if_asked(limit: int) -> None:
    bank = published(NAMES)
    every = bank.matches(KEYS)
    assert [m.fact for m in bank.matches(KEYS, limit=limit)] == [m.fact for m in every[:limit]]
    firing = [(m.fact, m.rows) for m in every if m.fires]
    assert [(m.fact, m.rows) for m in bank.matches(KEYS, firing=True)] == firing
    assert firing


def test_without_columns_or_keys_nothing_matches() -> None:
    assert published("").matches(KEYS) == []
    assert published("A").matches({0: KEYS[0][:0]}) == []
    assert matched({"A": FactWeights()}, KEYS) == []
    assert not Match("A", 0, 0.5, 0.9, ()).fires
