"""Compiled kernels for CPUs: what `kernels.c` computes, called with tensors."""

from npt_core.native.library import Batch, Library, Matrix, compiled
from npt_core.native.panels import Panels, gather

__all__ = ["Batch", "Library", "Matrix", "Panels", "compiled", "gather"]
