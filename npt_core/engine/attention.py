"""Keys and values in pages on a CPU, and attention of a flattened batch over them.

One attention a sequence, on its keys and values where they lie, is faster than a padded
batch with a mask: nothing is copied, and nothing is computed for padding.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from npt_core.engine.batch import Batch, Segment
from npt_core.engine.forward import Mix
from npt_core.engine.page_table import PAGE


class KeyValues:
    """Keys and values of every layer, in `num_pages * PAGE` slots of `[kv_heads, head_dim]`. `untouched`
    slots, for kernels alone, take memory when they are first used.
    """

    def __init__(
        self,
        layers: int,
        num_pages: int,
        heads: int,
        kv_heads: int,
        like: Tensor,
        width: int,
        scale: float,
        untouched: bool = False,
    ) -> None:
        slots = num_pages * PAGE
        self._like, self._scale = like, scale
        self._groups = heads // kv_heads
        self.kv_heads, self._width = kv_heads, width
        # Zeros, because torch multiplies a masked score with whatever is here, and because memory that is
        # taken when a page is first used looks like a leak.
        new, shape = like.new_empty if untouched else like.new_zeros, (slots, kv_heads, width)
        self.slots = [(new(shape), new(shape)) for _ in range(layers)]
        # The same as attention reads them, `[1, kv_heads, slots, head_dim]`.
        self._heads = [tuple(part.transpose(0, 1)[None] for part in both) for both in self.slots]

    @property
    def page_bytes(self) -> int:
        """Bytes that one page takes in all layers."""
        keys, values = self.slots[0]
        return len(self.slots) * PAGE * (keys[0].nbytes + values[0].nbytes)

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put keys and values `[rows, kv_heads, head_dim]` into `slots` `[rows]`."""
        for memory, new in zip(self.slots[layer], (keys, values), strict=True):
            memory.index_copy_(0, slots, new)

    def mixing(self, batch: Batch) -> Mix:
        """Attention of the rows of `batch`; see `forward.Memory`."""
        return partial(self._attend, batch, [self._mask(segment) for segment in batch.segments])

    def _attend(self, batch: Batch, masks: list[Tensor | None], layer: int, queries: Tensor) -> Tensor:
        # Heads that share keys are further queries of one head: keys are not repeated.
        grouped = queries.view(-1, self.kv_heads, self._groups, self._width)
        outputs = []
        for segment, mask in zip(batch.segments, masks, strict=True):
            k, v = (_read(memory, segment) for memory in self._heads[layer])
            q = grouped.narrow(0, segment.first, segment.rows)
            if segment.rows > 1:  # one row lies as attention wants it
                q = q.permute(1, 2, 0, 3).reshape(1, self.kv_heads, -1, self._width)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self._scale)
            by_head = mixed.view(self.kv_heads, self._groups, segment.rows, self._width)
            outputs.append(by_head.permute(2, 0, 1, 3))
        outputs += outputs[-1:] * batch.copies
        return (torch.cat(outputs) if len(outputs) > 1 else outputs[0]).reshape(queries.shape[0], -1)

    def _mask(self, segment: Segment) -> Tensor | None:
        """What is added to the scores `[groups * rows, length]` of a segment; None where it sees all."""
        if segment.rows == 1:
            return None
        seen = torch.arange(segment.length)
        position = torch.arange(segment.start, segment.start + segment.rows)
        hidden = seen[None] > position[:, None]
        blank = self._like.new_zeros(segment.rows, segment.length).masked_fill_(hidden, float("-inf"))
        return blank.repeat(self._groups, 1)


def _read(memory: Tensor, segment: Segment) -> Tensor:
    """`[1, kv_heads, length, head_dim]` of a segment: where it lies, or copied from apart."""
    slots = segment.slots
    if isinstance(slots, int):
        return memory.narrow(2, slots, segment.length)
    return memory.index_select(2, slots)
