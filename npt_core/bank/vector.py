"""Tensors that grow at one end, while readers keep the length they were given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

LEAST_CAPACITY = 16

AHEAD = 1024
"""From this capacity on, the next store is filled little by little before it is needed."""


@dataclass(slots=True)
class _Store:
    """Room for more rows than there are. What lies below `used` is never written again.

    `following` has twice the room, and so far the first rows of this one.
    """

    data: Tensor
    used: int
    following: _Store | None = None

    @classmethod
    @torch.inference_mode(False)
    def like(cls, rows: Tensor, capacity: int) -> Self:
        """An empty store; memory that is not written yet is not taken yet, on most systems."""
        return cls(rows.new_empty(capacity, *rows.shape[1:]), 0)

    @property
    def room(self) -> int:
        """Rows that it can hold."""
        return self.data.shape[0]

    def take(self, rows: Tensor, stop: int) -> None:
        """Copy `rows` up to `stop`, from where the last copy ended."""
        if stop > self.used:
            self.data[self.used : stop] = rows[self.used : stop]
            self.used = stop


@dataclass(frozen=True, slots=True)
class Vector:
    """`n` rows, immutable; a longer vector that was made of this one shares its memory."""

    rows: Tensor  # [n, ...]
    _store: _Store

    @classmethod
    def of(cls, rows: Tensor) -> Self:
        """Holds `rows` as they are; the first extension copies them."""
        return cls(rows, _Store(rows, len(rows)))

    def __len__(self) -> int:
        return self.rows.shape[0]  # `len` of a tensor takes microseconds, and every layer of a step asks

    @property
    def room(self) -> Tensor:
        """The memory that the rows begin, and into which longer vectors made of this one are written, the
        same object as long as they fit. What lies beyond the rows may be anything.
        """
        return self._store.data

    def extended(self, new: Tensor) -> Self:
        """These rows and `new` `[k, ...]` after them, for the cost of a few times `k` rows.

        Capacity grows in powers of two, and is prepared ahead: no extension pays for all rows. Of two
        extensions of one vector the second one does: the first took the room.
        """
        count, total = len(self), len(self) + new.shape[0]
        store = self._store
        if store.used != count or total > store.room:
            store = self._roomier(total)
        store.data[count:total] = new
        store.used = total
        self._prepare(store, total - count)
        return type(self)(store.data[:total], store)

    def _roomier(self, total: int) -> _Store:
        store, prepared = self._store, self._store.following
        if prepared is None or store.used != len(self) or total > prepared.room:
            capacity = max(LEAST_CAPACITY, 1 << (total - 1).bit_length())
            prepared = _Store.like(self.rows, capacity)
        else:
            store.following = None  # Whoever extends this vector again finds its own.
        prepared.take(self.rows, len(self))
        return prepared

    def _prepare(self, store: _Store, added: int) -> None:
        """Beyond half of the room, copy two rows for each one added: when it is full, all are copied."""
        if store.room < AHEAD or 2 * store.used <= store.room:
            return
        if store.following is None:
            store.following = _Store.like(store.data, 2 * store.room)
        store.following.take(store.data, min(store.following.used + 2 * added, store.used))
