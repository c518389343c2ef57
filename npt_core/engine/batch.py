"""The spans of a step as tensors on a CPU: one row a token, sequences one after the other."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from npt_core.engine.page_table import PAGE, pages_for
from npt_core.engine.sequence import Sequence, Span
from npt_core.engine.weights import MIN_ROWS

BLOCK = 128
"""Queries of one attention: a prompt is cut at multiples of this, wherever its chunks end."""
EXACT_KEYS = 384 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 128
"""Up to so many keys, further ones that are masked change no bit of a row; without AVX-512 they are fewer.
Beyond, MKL sums over the keys in parts whose borders depend on how many there are: there must be a multiple
of `BLOCK`.
"""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive rows of one sequence: `rows` from row `first` on, at positions `start` onward.

    `slots` are where its `length` keys and values lie: the first slot if they lie in a row, or
    every slot, `[length]`. `rows` is 1 when decoding and a multiple of `PAGE` in prefill, where
    some of the last keys may be nobody's: no row sees them.
    """

    first: int
    rows: int
    start: int
    length: int
    slots: int | Tensor


class Piece(NamedTuple):
    """Rows of one sequence, from row `first` on: its positions `start` to `end`."""

    sequence: Sequence
    first: int
    start: int
    end: int


class PageTables(NamedTuple):
    """What each row attends to: `lengths` `[rows]` tokens in the pages from `starts` `[rows]` on, of `pages`
    (int32), those of all sequences. The most are `longest`.
    """

    pages: Tensor
    starts: Tensor
    lengths: Tensor
    longest: int


@dataclass(slots=True)
class _Rows:
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    scales: list[float | None] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)

    def add(self, sequence: Sequence, start: int, end: int) -> None:
        """Rows for the positions `start` to `end`; token 0 stands where there is none yet."""
        self.pieces.append(Piece(sequence, len(self.ids), start, end))
        tokens, pages = sequence.tokens, sequence.pages
        known = tokens[start:end]
        self.ids += known
        self.ids += [0] * (end - start - len(known))
        self.positions += range(start, end)
        self.slots += [PAGE * pages[p // PAGE] + p % PAGE for p in range(start, end)]
        self.versions += [sequence.version] * (end - start)
        self.scales += [sequence.request.modulation_scale] * (end - start)


@dataclass(frozen=True)
class Batch:
    """Input of a forward over `[rows]` tokens, of which `samples` give logits.

    `versions` and `scales` are one value if all rows agree. `copies` last rows repeat the one
    before, because a product needs so many.
    """

    ids: Tensor
    positions: Tensor
    slots: Tensor
    versions: int | Tensor
    scales: float | Tensor | None
    pieces: list[Piece]
    samples: Tensor
    copies: int

    @classmethod
    def of(cls, spans: Seq[Span], exact: bool) -> "Batch":
        """The batch of a step's spans, in their order. Unless it is `exact`, for kernels that compute each
        row by itself, there are rows more: torch's products and attention need some.
        """
        rows, samples = _Rows(), list[int]()
        for span in spans:
            last = _add_exactly(rows, span) if exact else _add(rows, span)
            if span.samples:
                samples.append(last)
            for position, token in enumerate(span.draft, span.end):
                samples.append(len(rows.ids))
                rows.add(span.sequence, position, position + 1)
                rows.ids[-1] = token
        copies = 0 if exact else max(MIN_ROWS - len(rows.ids), 0)
        for part in (rows.ids, rows.positions, rows.slots, rows.versions, rows.scales):
            part += part[-1:] * copies
        whole = torch.tensor([rows.ids, rows.positions, rows.slots])
        return cls(
            ids=whole[0],
            positions=whole[1],
            slots=whole[2],
            versions=_versions(rows.versions),
            scales=_scales(rows.scales),
            pieces=rows.pieces,
            samples=torch.tensor(samples, dtype=torch.int64),
            copies=copies,
        )

    @cached_property
    def segments(self) -> list[Segment]:
        """The rows as torch attends with them, without copies."""
        return [_segment(*piece) for piece in self.pieces]

    @cached_property
    def tables(self) -> PageTables:
        """The rows as the compiled kernel attends with them, each by itself."""
        pages, starts, places = list[int](), list[int](), dict[int, int]()
        for sequence, _, _, end in reversed(self.pieces):  # the last piece of a sequence reaches furthest
            if id(sequence) not in places:
                places[id(sequence)] = len(pages)
                pages += sequence.pages[: pages_for(end)]
        for sequence, _, start, end in self.pieces:
            starts += [places[id(sequence)]] * (end - start)
        starts += starts[-1:] * self.copies
        lengths = self.positions + 1
        return PageTables(
            torch.tensor(pages, dtype=torch.int32), torch.tensor(starts), lengths, int(lengths.max())
        )


def _add_exactly(rows: _Rows, span: Span) -> int:
    """Add the rows of one span; the row of its last token."""
    rows.add(span.sequence, span.start, span.end)
    return len(rows.ids) - 1


def _add(rows: _Rows, span: Span) -> int:
    """The same for torch.

    The prompt is computed in whole pages, the answer in single rows, now as when it is computed
    again after a preemption: so both give the same bits.
    """
    sequence, start = span.sequence, span.start
    prompt_end = min(span.end, sequence.prompt_length)
    last = -1
    if start < prompt_end:
        last = len(rows.ids) + prompt_end - start - 1
        end = PAGE * pages_for(prompt_end)
        while start < end:
            until = min(BLOCK * (start // BLOCK + 1), end)
            rows.add(sequence, start, until)
            start = until
        start = prompt_end
    for position in range(start, span.end):
        last = len(rows.ids)
        rows.add(sequence, position, position + 1)
    return last


def _segment(sequence: Sequence, first: int, start: int, end: int) -> Segment:
    pages = sequence.pages[: pages_for(end)]
    length = end
    if end - start > 1 and end > EXACT_KEYS:
        length = -(-end // BLOCK) * BLOCK
    in_a_row = pages[-1] - pages[0] == len(pages) - 1 and pages == list(range(pages[0], pages[-1] + 1))
    if in_a_row and length == end:
        return Segment(first, end - start, start, length, PAGE * pages[0])
    pages += pages[-1:] * (pages_for(length) - len(pages))
    slots = (torch.tensor(pages)[:, None] * PAGE + torch.arange(PAGE)).flatten()
    return Segment(first, end - start, start, length, slots[:length])


def _versions(versions: list[int]) -> int | Tensor:
    return versions[0] if len(set(versions)) == 1 else torch.tensor(versions)


def _scales(scales: list[float | None]) -> float | Tensor | None:
    if len(set(scales)) == 1:
        return scales[0]
    return torch.tensor([[1.0 if scale is None else scale] for scale in scales])
