"""Attention of a flattened batch by the compiled kernels: each row by itself, over its sequence's pages."""

from functools import partial

from torch import Tensor

from npt_core.engine.attention import KeyValues
from npt_core.engine.batch import Batch, PageTables
from npt_core.engine.forward import Attend
from npt_core.engine.page_table import PAGE
from npt_core.engine.weights import ModelWeights
from npt_core.native import Library


class NativeAttention:
    """Rotary embedding, writing and attention for `KeyValues`; see `forward.Attention`."""

    def __init__(
        self, library: Library, memory: KeyValues, weights: ModelWeights, heads: int, scale: float
    ) -> None:
        self._library, self._weights, self._scale = library, weights, scale
        self._heads, self._groups = heads, heads // memory.kv_heads
        # Addresses instead of tensors: they are asked for in every layer of every step.
        self._memory = [(keys.data_ptr(), values.data_ptr()) for keys, values in memory.slots]
        self._kept_alive = memory
        self._width = weights.cos.shape[-1]

    def attending(self, batch: Batch) -> Attend:
        """Attention of the rows of `batch`."""
        return partial(self._attend, batch, batch.tables)

    def _attend(self, batch: Batch, tables: PageTables, layer: int, qkv: Tensor) -> Tensor:
        memory, weights = self._memory[layer], self._weights
        q = self._library.rotate(
            qkv.view(len(qkv), -1, self._width), self._heads, weights.cos, weights.sin, batch.positions,
            batch.slots, memory,
        )  # fmt: skip
        places = tables.pages, tables.starts, tables.lengths
        mixed = self._library.attend(q, memory, places, PAGE, self._groups, self._scale, tables.longest)
        return mixed.view(len(q), -1)
