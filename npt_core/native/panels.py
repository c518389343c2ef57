"""A matrix as the compiled products read it."""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from npt_core.native.library import Library, Matrix

LARGE = 1 << 21
"""Bytes of a large page, on most processors."""


@dataclass(eq=False)
class Panels:
    """A matrix `[in, out]` in `panels` `[ceil(out / panel), in, panel]`, each read from end to end."""

    library: Library
    panels: Tensor
    outputs: int

    @classmethod
    def of(cls, library: Library, matrix: Tensor) -> Self:
        inputs, outputs = matrix.shape
        count = -(-outputs // library.panel)
        made = cls(library, matrix.new_empty(count, inputs, library.panel), outputs)
        made.fill(matrix)
        return made

    def fill(self, matrix: Tensor) -> None:
        """Put another one of the same shape in its place."""
        count, inputs, width = self.panels.shape
        wide = F.pad(matrix, (0, count * width - self.outputs))
        self.panels.copy_(wide.view(inputs, count, width).transpose(0, 1))

    def times(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`[rows, in]` to `[rows, out]`: `x` times the matrix, plus `bias` `[out]`."""
        return self.library.product(x, self.matrix(bias))

    def matrix(self, bias: Tensor | None) -> Matrix:
        """As kernels read it; valid as long as these panels and `bias` are."""
        return Matrix(self.panels.data_ptr(), None if bias is None else bias.data_ptr(), self.outputs)


def gather(several: Sequence[Panels]) -> None:
    """From now on they lie one after the other, in large pages where the system has some. A step of few rows
    reads them all once, from end to end, and is as fast as that: 10% faster without a look at the page table
    for every 4 KiB.
    """
    free = _large(sum(each.panels.numel() for each in several), several[0].panels)
    for each in several:
        taken, free = free.tensor_split([each.panels.numel()])
        each.panels = taken.view_as(each.panels).copy_(each.panels)


def _large(count: int, like: Tensor) -> Tensor:
    """Room for `count` numbers."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):  # not Linux
        return like.new_empty(count)
    memory = mmap.mmap(-1, count * like.element_size() + LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without them
        return like.new_empty(count)
    room = torch.frombuffer(memory, dtype=like.dtype)
    first = -room.data_ptr() % LARGE // like.element_size()
    return room[first : first + count]
