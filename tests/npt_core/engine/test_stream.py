import threading

from hypothesis import given
from hypothesis import strategies as st

from npt_core.engine import Event, FinishEvent, FinishReason, Stream, TokenEvent

EVENTS = st.lists(
    st.one_of(
        st.builds(TokenEvent, st.integers(0, 2), st.integers(0, 9)),
        st.builds(FinishEvent, st.integers(0, 2), st.sampled_from(FinishReason)),
    ),
    max_size=20,
)


def close(stream: Stream) -> None:
    for index in range(3):
        stream.put(FinishEvent(index, FinishReason.CANCELLED))


@given(EVENTS)
def test_each_sequence_ends_exactly_once_and_nothing_follows(events: list[Event]) -> None:
    stream = Stream(3, 0)
    for event in events:
        stream.put(event)
    close(stream)
    heard = list(stream)
    for index in range(3):
        own = [event for event in heard if event.index == index]
        assert [isinstance(event, FinishEvent) for event in own].count(True) == 1
        assert isinstance(own[-1], FinishEvent)
    assert stream.finished


@given(EVENTS, st.integers(0, 20))
def test_listener_hears_what_an_iterator_would(events: list[Event], joined_after: int) -> None:
    read, heard = Stream(3, 0), Stream(3, 0)
    collected: list[Event] = []
    for position, event in enumerate(events):
        if position == joined_after:
            heard.subscribe(collected.append)
        read.put(event)
        heard.put(event)
    if joined_after >= len(events):
        heard.subscribe(collected.append)
    close(read)
    close(heard)
    assert collected == list(read)


def test_events_reach_a_reader_on_another_thread() -> None:
    stream = Stream(1, 0)
    heard: list[Event] = []
    reader = threading.Thread(target=lambda: heard.extend(stream))
    reader.start()
    sent: list[Event] = [TokenEvent(0, 1), TokenEvent(0, 2), FinishEvent(0, FinishReason.STOP)]
    for event in sent:
        stream.put(event)
    reader.join(10)
    assert heard == sent


def test_cancelling_twice_or_after_the_end_is_harmless() -> None:
    stream = Stream(1, 0)
    stream.cancel()
    stream.cancel(0)
    assert stream.is_cancelled(0)
    stream.put(FinishEvent(0, FinishReason.CANCELLED))
    stream.cancel()
    assert list(stream) == [FinishEvent(0, FinishReason.CANCELLED)]
