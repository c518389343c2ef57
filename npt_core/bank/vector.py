"""Tensors that grow at one end, while readers keep the length they were given."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

LEAST_CAPACITY = 16


@dataclass(slots=True)
class _Store:
    """Room for more rows than there are. What lies below `used` is never written again."""

    data: Tensor
    used: int


@dataclass(frozen=True, slots=True)
class Vector:
    """`n` rows, immutable; a longer vector that was made of this one shares its memory.

    With `transposed`, rows lie side by side in memory: `rows.T` is what a product reads fastest.
    """

    rows: Tensor  # [n, ...]
    transposed: bool
    _store: _Store

    @classmethod
    def of(cls, rows: Tensor, transposed: bool = False) -> Self:
        """Holds `rows` as they are; the first extension copies them."""
        return cls(rows, transposed, _Store(rows, len(rows)))

    def __len__(self) -> int:
        return len(self.rows)

    def extended(self, new: Tensor) -> Self:
        """These rows and `new` `[k, ...]` after them, for the cost of `k` rows.

        Capacity grows in powers of two. Of two extensions of one vector the second one copies: the
        first took the room.
        """
        count, total = len(self.rows), len(self.rows) + len(new)
        store = self._store
        if store.used != count or total > len(store.data):
            store = self._roomier(total)
        store.data[count:total] = new
        store.used = total
        return type(self)(store.data[:total], self.transposed, store)

    @torch.inference_mode(False)
    def _roomier(self, total: int) -> _Store:
        capacity = max(LEAST_CAPACITY, 1 << (total - 1).bit_length())
        shape = [capacity, *self.rows.shape[1:]]
        empty = self.rows.new_empty
        data = empty(shape[::-1]).T if self.transposed else empty(shape)
        data[: len(self.rows)] = self.rows
        return _Store(data, len(self.rows))
