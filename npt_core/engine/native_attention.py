"""Attention of a flattened batch by one compiled kernel: each row by itself, over its sequence's pages."""

from functools import partial

from torch import Tensor

from npt_core.engine.attention import KeyValues
from npt_core.engine.batch import Batch
from npt_core.engine.forward import Attend
from npt_core.engine.page_table import PAGE
from npt_core.engine.weights import ModelWeights
from npt_core.native import Batch as Rows
from npt_core.native import Library


class NativeAttention:
    """Projections, rotary embedding, writing and attention for `KeyValues`; see `forward.Attention`."""

    def __init__(
        self, library: Library, memory: KeyValues, weights: ModelWeights, heads: int, scale: float
    ) -> None:
        self._library, self._weights = library, weights
        self._heads, self._kv_heads, self._scale = heads, memory.kv_heads, scale
        # Addresses instead of tensors: they are asked for in every layer of every step.
        self._memory = [(keys.data_ptr(), values.data_ptr()) for keys, values in memory.slots]
        self._kept_alive = memory

    def attending(self, batch: Batch) -> Attend:
        """Attention of the rows of `batch`."""
        weights, tables = self._weights, batch.tables
        tensors = weights.cos, weights.sin, batch.positions, batch.slots
        rows = Rows(
            *(tensor.data_ptr() for tensor in (*tensors, tables.starts, tables.lengths, tables.pages)),
            *(len(batch.ids), self._heads, self._kv_heads, weights.cos.shape[-1], PAGE, self._scale),
        )
        return partial(self._attend, batch, rows)  # which keeps the tensors

    def _attend(self, batch: Batch, rows: Rows, layer: int, n: Tensor) -> Tensor:
        qkv = self._weights.layers[layer].qkv.matrix
        mixed = self._library.attention(n, qkv, rows, self._memory[layer], batch.tables.longest)
        return mixed.view(len(n), -1)
