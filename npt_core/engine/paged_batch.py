"""The spans of a step as tensors for a GPU: one row a token, and a table of pages for each span."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import torch
from torch import Tensor

from npt_core.engine.page_table import pages_for
from npt_core.engine.sequence import Sequence, Span
from npt_core.engine.transfer import sent


@dataclass(slots=True)
class Laid:
    """A step on the host: what is sent to the device, as lists.

    A token is a row of `ids`, `positions`, `slots`, `versions`, `scales`; a span, or a guessed token, is
    one of `queries` (its rows), `lengths` (the keys its last row sees) and `tables` (its pages).
    """

    page_size: int
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    queries: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    tables: list[list[int]] = field(default_factory=list)

    @classmethod
    def of(cls, spans: Seq[Span], page_size: int) -> "Laid":
        laid = cls(page_size)
        for span in spans:
            laid._add_of(span.sequence, span.sequence.tokens[span.start : span.end], span.start)
            if span.samples:
                laid.samples.append(len(laid.ids) - 1)
            # All rows write their keys before any reads: what a guess is based on is there.
            for position, token in enumerate(span.draft, span.end):
                laid._add_of(span.sequence, [token], position)
                laid.samples.append(len(laid.ids) - 1)
        return laid

    @property
    def decoding(self) -> bool:
        """Whether every span is one row that gives logits."""
        return len(self.samples) == len(self.queries) == len(self.ids)

    def padded(self, spans: int, scratch: int) -> None:
        """Add single rows up to `spans` spans, which write to the page `scratch` and read there.

        They are of version 0, where nothing was ever written.
        """
        for number in range(spans - len(self.queries)):
            self._add([0], 0, [scratch])
            self.slots[-1] += number % self.page_size
            self.versions.append(0)
            self.scales.append(1.0)

    def _add_of(self, sequence: Sequence, tokens: Seq[int], start: int) -> None:
        scale = sequence.request.modulation_scale
        self._add(tokens, start, sequence.pages[: pages_for(start + len(tokens), self.page_size)])
        self.versions += [sequence.version] * len(tokens)
        self.scales += [1.0 if scale is None else scale] * len(tokens)

    def _add(self, tokens: Seq[int], start: int, pages: list[int]) -> None:
        size, end = self.page_size, start + len(tokens)
        self.ids += tokens
        self.positions += range(start, end)
        self.slots += [size * pages[p // size] + p % size for p in range(start, end)]
        self.queries.append(len(tokens))
        self.lengths.append(end)
        self.tables.append(pages)


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """Input of a forward over `[rows]` tokens of `[spans]` sequences.

    Span i has the rows `starts[i]` to `starts[i + 1]`; the last of them sees the first `lengths[i]`
    keys, which lie in the pages `tables[i]`.
    """

    tokens: Tensor  # [4, rows] int64: ids, positions, slots, versions
    factors: Tensor  # [rows, 1] float32
    starts: Tensor  # [spans + 1] int32
    lengths: Tensor  # [spans] int32
    tables: Tensor  # [spans, pages] int32
    longest_query: int
    longest_text: int

    @classmethod
    def of(cls, laid: Laid, device: torch.device) -> "PagedBatch":
        """The batch of a step, sent to `device` without waiting for it."""
        starts = [0]
        for rows in laid.queries:
            starts.append(starts[-1] + rows)
        return cls(
            sent([laid.ids, laid.positions, laid.slots, laid.versions], torch.int64, device),
            sent([[scale] for scale in laid.scales], torch.float32, device),
            sent(starts, torch.int32, device),
            sent(laid.lengths, torch.int32, device),
            sent(rectangular(laid.tables), torch.int32, device),
            max(laid.queries),
            max(laid.lengths),
        )

    @classmethod
    def standing(cls, spans: int, pages: int, page_size: int, device: torch.device) -> "PagedBatch":
        """Room for `spans` single rows of up to `pages` pages, to be filled again and again."""
        return cls(
            torch.zeros(4, spans, dtype=torch.int64, device=device),
            torch.ones(spans, 1, device=device),
            torch.arange(spans + 1, dtype=torch.int32, device=device),
            torch.ones(spans, dtype=torch.int32, device=device),
            torch.zeros(spans, pages, dtype=torch.int32, device=device),
            1,
            pages * page_size,
        )

    def fill(self, laid: Laid) -> None:
        """Copy single rows into the room of `standing`, without waiting for the device."""
        device = self.tokens.device
        tokens = [laid.ids, laid.positions, laid.slots, laid.versions]
        self.tokens.copy_(sent(tokens, torch.int64, device))
        self.factors.copy_(sent([[scale] for scale in laid.scales], torch.float32, device))
        self.lengths.copy_(sent(laid.lengths, torch.int32, device))
        # Beyond a row's own pages nothing is read.
        tables = sent(rectangular(laid.tables), torch.int32, device)
        self.tables[:, : tables.shape[1]].copy_(tables)

    @property
    def ids(self) -> Tensor:
        return self.tokens[0]

    @property
    def positions(self) -> Tensor:
        return self.tokens[1]

    @property
    def slots(self) -> Tensor:
        return self.tokens[2]

    @property
    def versions(self) -> Tensor:
        return self.tokens[3]

    @property
    def scales(self) -> Tensor:
        return self.factors


def rectangular(tables: Seq[list[int]]) -> list[list[int]]:
    """All rows as long as the longest."""
    width = max(map(len, tables))
    return [table + table[-1:] * (width - len(table)) for table in tables]
