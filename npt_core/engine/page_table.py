"""Pages of keys and values: which are free, and how many hold on to each of the others."""

from collections.abc import Iterable

PAGE = 16
"""Tokens a page on a CPU; and everywhere, prompts are cut into chunks at multiples of it. Rows of
attention come out the same, bit for bit, however a prompt is cut so; and a sequence wastes 8 tokens
on average.
"""


def pages_for(tokens: int, page_size: int = PAGE) -> int:
    """Pages of `page_size` tokens that hold `tokens` tokens."""
    return -(-tokens // page_size)


class PageTable:
    """Pages 0 to `size - 1` of `page_size` tokens, each free or held by at least one owner. No page is
    ever lost.
    """

    def __init__(self, size: int, page_size: int = PAGE) -> None:
        if size < 1:
            raise ValueError("there must be at least 1 page")
        if page_size < PAGE or page_size % PAGE:
            raise ValueError(f"a page must hold a multiple of {PAGE} tokens")
        self.size = size
        self.page_size = page_size
        self._refs = [0] * size
        self._free = bytearray(b"\1" * size)
        self._num_free = size

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return self._num_free

    def needed(self, tokens: int) -> int:
        """Pages that hold `tokens` tokens."""
        return pages_for(tokens, self.page_size)

    def references(self, page: int) -> int:
        """How many hold `page`."""
        return self._refs[page]

    def take(self, after: int | None = None) -> int | None:
        """A free page, held from now on; the one behind `after` if that is free. None if none is."""
        beside = -1 if after is None else after + 1
        page = beside if 0 <= beside < self.size and self._free[beside] else self._free.find(1)
        if page < 0:
            return None
        self._hold(page)
        return page

    def take_run(self, count: int) -> list[int]:
        """`count` free pages in a row, held from now on; none if there is no such run."""
        start = self._free.find(b"\1" * count) if 0 < count <= self._num_free else -1
        if start < 0:
            return []
        run = list(range(start, start + count))
        for page in run:
            self._hold(page)
        return run

    def share(self, page: int) -> None:
        """One more holds `page`, which somebody holds already."""
        if not self._refs[page]:
            raise ValueError(f"page {page} is free")
        self._refs[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """One fewer holds each of `pages`."""
        for page in pages:
            if not self._refs[page]:
                raise ValueError(f"page {page} is free already")
            self._refs[page] -= 1
            if not self._refs[page]:
                self._free[page] = 1
                self._num_free += 1

    def _hold(self, page: int) -> None:
        self._refs[page] = 1
        self._free[page] = 0
        self._num_free -= 1
