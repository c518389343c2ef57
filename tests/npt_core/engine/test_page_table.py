import pytest
from hypothesis import given
from hypothesis import strategies as st

from npt_core.engine.page_table import PAGE, PageTable, pages_for


@given(st.integers(1, 20), st.lists(st.tuples(st.sampled_from(["take", "run", "share", "release"]),
                                             st.integers(0, 40)), max_size=60))  # fmt: skip
def test_every_page_is_free_or_held_as_often_as_it_was_taken(size: int, moves: list[tuple[str, int]]) -> None:
    table, held = PageTable(size), list[int]()
    for move, number in moves:
        if move == "take":
            page = table.take(after=number)
            assert (page is None) == (len(set(held)) == size)
            held += [] if page is None else [page]
        elif move == "run":
            run = table.take_run(number)
            assert not set(run) & set(held)
            assert run == list(range(run[0], run[0] + number)) if run else True
            held += run
        elif held:
            page = held[number % len(held)]
            if move == "share":
                table.share(page)
                held.append(page)
            else:
                table.release([page])
                held.remove(page)
        assert table.free == size - len(set(held))
        assert all(table.references(page) == held.count(page) for page in range(size))


def test_next_page_is_the_one_behind_if_it_is_free() -> None:
    table = PageTable(4)
    assert table.take_run(2) == [0, 1]
    assert table.take(after=1) == 2
    table.release([0])
    assert table.take(after=0) == 0
    assert table.take_run(2) == []


def test_free_page_cannot_be_shared_or_released() -> None:
    table = PageTable(2)
    with pytest.raises(ValueError, match="is free"):
        table.share(0)
    with pytest.raises(ValueError, match="free already"):
        table.release([1])


@given(st.integers(0, 1000), st.integers(1, 16))
def test_pages_hold_all_tokens_and_waste_less_than_one(tokens: int, chunks: int) -> None:
    table = PageTable(1, chunks * PAGE)
    assert 0 <= table.needed(tokens) * table.page_size - tokens < table.page_size
    assert pages_for(tokens) == PageTable(1).needed(tokens)


@pytest.mark.parametrize("page_size", [0, 8, 24])
def test_page_must_hold_whole_chunks_of_prompts(page_size: int) -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        PageTable(1, page_size)
