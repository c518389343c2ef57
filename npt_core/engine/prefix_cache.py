"""Pages of prompts, found again by what they were computed from.

A tree: the key of a page is the node of the page before it and its own tokens; the root is the
weights version and the modulation scale. Keys are compared whole, so no hash can collide. Only
what prefill computed comes here: decoding rounds differently, and a hit must not change a bit.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import count

from npt_core.engine.page_table import PageTable


@dataclass(frozen=True, slots=True)
class _Entry:
    node: int
    page: int


class PrefixCache:
    """Holds on to pages of prompts until `evict` is asked for them, least recently used first."""

    def __init__(self, pages: PageTable, enabled: bool = True) -> None:
        self._pages = pages
        self.enabled = enabled
        self._entries: OrderedDict[tuple[Hashable, tuple[int, ...]], _Entry] = OrderedDict()
        self._nodes = count()
        self.queried_tokens = 0
        self.hit_tokens = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def evictable(self) -> int:
        """Pages that nobody but the cache holds."""
        return sum(self._pages.references(entry.page) == 1 for entry in list(self._entries.values()))

    def match(self, root: Hashable, tokens: Sequence[int]) -> tuple[list[int], Hashable]:
        """The longest known run of whole pages at the start of `tokens`, which the caller now
        holds too, and its last node.
        """
        found: list[tuple[tuple[Hashable, tuple[int, ...]], _Entry]] = []
        node, page_size = root, self._pages.page_size
        for start in range(0, len(tokens) - page_size + 1, page_size):
            key = (node, tuple(tokens[start : start + page_size]))
            entry = self._entries.get(key)
            if entry is None:
                break
            found.append((key, entry))
            node = entry.node
        # Last pages first: where a page goes, those behind it cannot be found any more.
        for key, entry in reversed(found):
            self._entries.move_to_end(key)
            self._pages.share(entry.page)
        return [entry.page for _, entry in found], node

    def count(self, queried: int, hit: int) -> None:
        """Note that of `queried` prompt tokens `hit` were found."""
        self.queried_tokens += queried
        self.hit_tokens += hit

    def insert(self, parent: Hashable, tokens: Sequence[int], page: int) -> Hashable:
        """Remember `page`, which holds `tokens` after `parent`; the node to insert the next under.

        If the cache has these tokens already, it keeps its own page.
        """
        if not self.enabled:
            return None
        key = (parent, tuple(tokens))
        entry = self._entries.get(key)
        if entry is None:
            self._pages.share(page)
            entry = self._entries[key] = _Entry(next(self._nodes), page)
        return entry.node

    def evict(self) -> bool:
        """Let go of the page that was unused for longest; False if every page is in use."""
        for key, entry in self._entries.items():
            if self._pages.references(entry.page) == 1:
                del self._entries[key]
                self._pages.release([entry.page])
                return True
        return False
