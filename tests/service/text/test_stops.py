from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from service.text.stops import StopMatcher

# Few letters, so that stop strings overlap themselves and each other.
TEXT = st.text("ab\n", max_size=30)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


def before_first_stop(text: str, stops: list[str]) -> str:
    """The rule, read off the whole text."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


def pieces(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[a:b] for a, b in pairwise(places)]


@given(TEXT, STOPS, st.lists(st.integers(0, 30), max_size=8))
def test_text_ends_before_the_first_stop_however_it_is_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    matcher = StopMatcher(stops)
    shown = "".join(matcher.push(piece) for piece in pieces(text, cuts))
    found = matcher.stopped
    assert shown + matcher.flush() == before_first_stop(text, stops)
    assert found == any(stop in text for stop in stops)


@given(TEXT, STOPS)
def test_nothing_is_shown_that_a_stop_string_would_take_back(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = ""
    for letter in text:
        shown += matcher.push(letter)
        assert before_first_stop(text, stops).startswith(shown)


def test_text_that_cannot_begin_a_stop_string_is_shown_at_once() -> None:
    matcher = StopMatcher(["</s>"])
    assert matcher.push("hello") == "hello"
    assert matcher.push(" <") == " "
    assert matcher.push("b>") == "<b>"
