"""The short form of `python -m torture store`."""

from pathlib import Path

import pytest

from torture import store
from torture.store import FAULTS, _spoilt


@pytest.mark.timeout(600)  # a quarter of a minute alone, minutes beside other work
def test_nothing_is_lost_where_the_store_fails_midway(tmp_path: Path) -> None:
    outcome = store.run(tmp_path, facts=30)
    assert outcome.problems == []
    assert outcome.facts >= 30
    assert sum(outcome.faults.values()) > 5
    assert set(outcome.faults) <= set(FAULTS)


def test_answers_are_spoilt_as_they_are_said_to_be() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd"
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\n"
    assert _spoilt(answer, None) == head + b"abcd"
    assert _spoilt(answer, "cut").endswith(b"\r\n\r\nab")
    assert _spoilt(answer, "flipped") == head + b"abbd"
