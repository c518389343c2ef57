import threading

import pytest

from npt_core.engine import alone


def test_thread_has_ended_when_its_result_is_there() -> None:
    before = threading.active_count()
    assert alone(threading.current_thread) is not threading.current_thread()
    assert threading.active_count() == before


def test_what_it_raises_is_raised() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        alone(int, "one")
