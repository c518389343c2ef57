"""Keys and values in pages on a GPU, and attention of a whole batch over them in one call.

The kernel is the FlashAttention 2 that ships with torch, called as `varlen_attn` with a table of pages
for each sequence. What it asks for, and what follows from it:

- Pages of a multiple of 256 tokens ("Paged KV cache block size must be divisible by 256"): `PAGE_SIZE`.
  A prefix is shared in units of that size, and a sequence wastes 128 tokens on average. The other way,
  small pages whose keys are gathered into one piece for every call, would write and read all keys of
  all sequences once more in every layer of every step.
- float16 or bfloat16, a head of at most 256 dimensions and a multiple of 8, int32 tables and lengths, and
  a device of compute capability 8.0 or newer: what does not fit is refused when the runner is made.
- Keys are never split among thread blocks (`num_splits=1`). Splitting is wrong for tables of pages in
  this kernel (pytorch issue 194167: rows of all sequences but the first are not written), and without it
  a sequence's result does not depend, bit for bit, on what else is in the batch. The price is a GPU that
  is not filled by few sequences with very long texts.
- One row for each sequence is asked for without a causal mask, which would hide nothing: only then are
  the heads that share keys computed together.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from npt_core.engine.forward import Mix
from npt_core.engine.paged_batch import PagedBatch
from npt_core.engine.weights import UnsupportedModel

PAGE_SIZE = 256
"""Tokens a page."""
LARGEST_HEAD, HEAD_MULTIPLE = 256, 8
LEAST_CAPABILITY = (8, 0)


class PagedKeyValues:
    """Keys and values of every layer, in `num_pages` pages of `[PAGE_SIZE, kv_heads, head_dim]`."""

    def __init__(
        self, layers: int, num_pages: int, kv_heads: int, like: Tensor, width: int, scale: float
    ) -> None:
        self._scale = scale
        # Zeros, because a row that pads a batch reads where nothing was written.
        shape = (num_pages, PAGE_SIZE, kv_heads, width)
        self.pages = [(like.new_zeros(shape), like.new_zeros(shape)) for _ in range(layers)]
        self._slots = [tuple(part.flatten(0, 1) for part in both) for both in self.pages]

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put keys and values `[rows, kv_heads, head_dim]` into `slots` `[rows]`."""
        for memory, new in zip(self._slots[layer], (keys, values), strict=True):
            memory.index_copy_(0, slots, new)

    def mixing(self, batch: PagedBatch) -> Mix:
        """Attention of the rows of `batch`; see `forward.Memory`."""
        # Read by nobody where there are tables of pages, but the kernel insists.
        key_starts = torch.nn.functional.pad(batch.lengths.cumsum(0, dtype=torch.int32), (1, 0))
        return partial(self._attend, batch, key_starts)

    def _attend(self, batch: PagedBatch, key_starts: Tensor, layer: int, queries: Tensor) -> Tensor:
        keys, values = self.pages[layer]
        mixed = varlen_attn(
            queries,
            keys,
            values,
            batch.starts,
            key_starts,
            batch.longest_query,
            batch.longest_text,
            scale=self._scale,
            window_size=(-1, 0) if batch.longest_query > 1 else (-1, -1),
            enable_gqa=True,
            seqused_k=batch.lengths,
            block_table=batch.tables,
            num_splits=1,
        )
        assert isinstance(mixed, Tensor)  # a pair only where more is asked for
        return mixed.reshape(queries.shape[0], -1)


def page_bytes(layers: int, kv_heads: int, width: int, dtype: torch.dtype) -> int:
    """Bytes that one page takes in all layers."""
    return 2 * layers * PAGE_SIZE * kv_heads * width * dtype.itemsize


def check_attention(dtype: torch.dtype, width: int, capability: tuple[int, int] | None) -> None:
    """Raises UnsupportedModel for what the kernel does not compute; `capability` is that of the GPU."""
    if dtype not in (torch.float16, torch.bfloat16):
        raise UnsupportedModel(f"attention on a GPU takes bfloat16 or float16, not {dtype}")
    if width > LARGEST_HEAD or width % HEAD_MULTIPLE:
        raise UnsupportedModel(
            f"attention on a GPU takes heads of up to {LARGEST_HEAD} dimensions, a multiple of "
            f"{HEAD_MULTIPLE}, not {width}"
        )
    if capability is not None and capability < LEAST_CAPABILITY:
        raise UnsupportedModel(
            "attention on a GPU needs compute capability {}.{}, this one has {}.{}".format(
                *LEAST_CAPABILITY, *capability
            )
        )
