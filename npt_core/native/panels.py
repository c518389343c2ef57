"""A matrix as the compiled product reads it."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor
from torch.nn import functional as F

from npt_core.native.library import Library, Matrix


@dataclass(frozen=True, eq=False)
class Panels:
    """A matrix `[in, out]` in `panels` `[ceil(out / panel), in, panel]`, each read from end to end."""

    library: Library
    panels: Tensor
    outputs: int

    @classmethod
    def of(cls, library: Library, matrix: Tensor) -> Self:
        inputs, outputs = matrix.shape
        count = -(-outputs // library.panel)
        wide = F.pad(matrix, (0, count * library.panel - outputs))
        panels = wide.view(inputs, count, library.panel).transpose(0, 1).contiguous()
        return cls(library, panels, outputs)

    def times(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`[rows, in]` to `[rows, out]`: `x` times the matrix, plus `bias` `[out]`."""
        return self.library.product(x, self.panels, bias, self.outputs)

    def matrix(self, bias: Tensor | None) -> Matrix:
        """For kernels that read several; valid as long as these panels and `bias` are."""
        return Matrix(self.panels.data_ptr(), None if bias is None else bias.data_ptr(), self.outputs)
