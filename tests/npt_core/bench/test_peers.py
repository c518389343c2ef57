"""Peers get what they need to answer all streams at once."""

from collections.abc import Callable, Sequence

import pytest

from npt_core.bench import peers
from npt_core.bench.figures import Figures, Timeline
from tests.npt_core.tiny import new_llama


def test_continuous_batching_begins_every_prompt_before_any_answer_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last of 16 waited for another one's end: too little of its cache was free."""
    found: list[Timeline] = []

    def once(streams: int, _seconds: float, answered: Callable[[int], Sequence[Timeline]]) -> Figures:
        found.extend(answered(0))
        return Figures.of(streams, found, 1.0)

    monkeypatch.setattr(peers, "rounds", once)
    peers.measure_continuous(new_llama(), 16, 0.0)
    assert len(found) == 16
    assert max(answer.tokens[0] for answer in found) < min(answer.tokens[-1] for answer in found)
