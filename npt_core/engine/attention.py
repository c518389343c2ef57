"""Keys and values in pages, and attention of a flattened batch over them.

On a CPU one attention a sequence, on its keys and values where they lie, is faster than a padded
batch with a mask: nothing is copied, and nothing is computed for padding.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from npt_core.engine.batch import Batch, Segment
from npt_core.engine.page_table import PAGE


class KeyValues:
    """Keys and values of every layer, in `num_pages * PAGE` slots of `[kv_heads, head_dim]`."""

    def __init__(
        self, layers: int, num_pages: int, heads: int, kv_heads: int, like: Tensor, width: int
    ) -> None:
        slots = num_pages * PAGE
        self._groups = heads // kv_heads
        self._kv_heads, self._width = kv_heads, width
        # Zeros, because a masked score is multiplied with whatever is here. Untouched memory of
        # a fresh allocation is not resident, so unused pages cost nothing.
        self._keys = [like.new_zeros(slots, kv_heads, width) for _ in range(layers)]
        self._values = [like.new_zeros(slots, kv_heads, width) for _ in range(layers)]

    @property
    def page_bytes(self) -> int:
        """Bytes that one page takes in all layers."""
        return 2 * len(self._keys) * PAGE * self._keys[0][0].numel() * self._keys[0].element_size()

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put keys and values `[rows, kv_heads, head_dim]` into `slots` `[rows]`."""
        self._keys[layer].index_copy_(0, slots, keys)
        self._values[layer].index_copy_(0, slots, values)

    def attend(
        self, layer: int, batch: Batch, masks: list[Tensor | None], queries: Tensor, scale: float
    ) -> Tensor:
        """Attention of `queries` `[rows, heads, head_dim]`; `[rows, heads * head_dim]`."""
        keys, values = self._keys[layer], self._values[layer]
        outputs = []
        for segment, mask in zip(batch.segments, masks, strict=True):
            slots, length = segment.slots, segment.length
            if isinstance(slots, int):
                k, v = keys.narrow(0, slots, length), values.narrow(0, slots, length)
            else:
                slots = slots.to(keys.device)
                k, v = keys.index_select(0, slots), values.index_select(0, slots)
            q = queries.narrow(0, segment.first, segment.rows)
            k, v = k.transpose(0, 1).unsqueeze(0), v.transpose(0, 1).unsqueeze(0)
            outputs.append(self._one(q, k, v, mask, scale))
        outputs += outputs[-1:] * batch.copies
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    def _one(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """`q` `[rows, heads, head_dim]`, `k`, `v` `[1, kv_heads, length, head_dim]`.

        Heads that share keys are further queries of one head: keys are not repeated.
        """
        rows = q.shape[0]
        q = q.view(rows, self._kv_heads, self._groups, self._width).permute(1, 2, 0, 3)
        q = q.reshape(1, self._kv_heads, self._groups * rows, self._width)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
        mixed = mixed.view(self._kv_heads, self._groups, rows, self._width)
        return mixed.permute(2, 0, 1, 3).reshape(rows, -1)

    def mask(self, segment: Segment, like: Tensor) -> Tensor | None:
        """What is added to the scores `[groups * rows, length]` of a segment; None where it sees all."""
        if segment.rows == 1:
            return None
        seen = torch.arange(segment.length, device=like.device)
        position = torch.arange(segment.start, segment.start + segment.rows, device=like.device)
        hidden = seen[None] > position[:, None]
        blank = like.new_zeros(segment.rows, segment.length).masked_fill_(hidden, float("-inf"))
        return blank.repeat(self._groups, 1)
