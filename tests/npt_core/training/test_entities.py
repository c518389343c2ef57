from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npt_core.training.entities import (
    GENERATORS,
    HELD_OUT_TERMS,
    entity,
    is_held_out,
    resembling,
)

SENTENCES = (
    "The CEO of TechCorp is Dr. Sarah Chen.",
    "The Zephyr API uses authentication token 'ZPH-2024-SECRET'.",
    "The codename for project Chronos is 'Sundial'.",
    "The element Trilium has an atomic weight of 350.",
    "The capital of Atlantis is Poseidon.",
)
seeds = st.integers(0, 2**64)
NO_DEADLINE = settings(deadline=None)


@pytest.mark.parametrize("sentence", SENTENCES)
def test_acceptance_sentences_are_held_out(sentence: str) -> None:
    assert is_held_out(sentence)


@pytest.mark.parametrize("term", HELD_OUT_TERMS)
def test_a_term_is_found_in_any_case_at_the_start_of_any_word(term: str) -> None:
    for text in (term, term.lower(), f"x-{term}.", f"'{term}'", f"{term}s", f"a_{term}"):
        assert is_held_out(text)


@pytest.mark.parametrize("text", ["Sara Chang", "TechSoft", "1350", "Zephon", "Atlas", ""])
def test_other_names_are_not_held_out(text: str) -> None:
    assert not is_held_out(text)


@NO_DEADLINE
@given(st.sampled_from(sorted(GENERATORS)), seeds)
def test_an_entity_is_a_name_and_never_held_out(kind: str, seed: int) -> None:
    name = entity(kind, Random(seed))
    assert name
    assert name == name.strip()
    assert "\n" not in name
    assert not is_held_out(name)
    assert entity(kind, Random(seed)) == name


@NO_DEADLINE
@given(st.sampled_from(sorted(GENERATORS)), seeds)
def test_a_resembling_name_is_another_one_and_never_held_out(kind: str, seed: int) -> None:
    r = Random(seed)
    name = entity(kind, r)
    other = resembling(name, r)
    assert other
    assert other != name
    assert not is_held_out(other)


@pytest.mark.parametrize("held_out", ["Chronos", "Trilium", "Atlantis", "Sarah Chen", "350"])
def test_what_resembles_a_held_out_name_is_not_held_out(held_out: str) -> None:
    for seed in range(300):
        assert not is_held_out(resembling(held_out, Random(seed)))


def test_names_come_from_a_wide_generator() -> None:
    r = Random(0)
    for kind in ("person", "company", "place", "project", "product", "code"):
        assert len({entity(kind, r) for _ in range(1000)}) > 500, kind


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(KeyError, match="dragon"):
        entity("dragon", Random(0))
