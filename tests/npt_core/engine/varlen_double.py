"""Stands for `varlen_attn` on a CPU: its formula in plain torch, and everything its kernel refuses."""

from __future__ import annotations

import torch
from torch import Tensor


class VarlenDouble:
    """With `exact`, it takes float32, which no kernel does: then what differs is an error, not rounding."""

    def __init__(self, exact: bool = True) -> None:
        self.dtypes = (torch.float32,) if exact else (torch.bfloat16, torch.float16)
        self.longest_queries: list[int] = []
        self.read: set[int] = set()  # pages

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float,
        window_size: tuple[int, int],
        enable_gqa: bool,
        seqused_k: Tensor,
        block_table: Tensor,
        num_splits: int,
    ) -> Tensor:
        self._check(query, key, value, cu_seq_q, cu_seq_k, seqused_k, block_table)
        assert num_splits == 1
        assert enable_gqa
        assert window_size == ((-1, -1) if max_q == 1 else (-1, 0))
        self.longest_queries.append(max_q)
        starts, lengths = cu_seq_q.tolist(), seqused_k.tolist()
        assert starts[0] == 0
        assert starts[-1] == len(query)
        output = torch.full_like(query, float("nan"))
        for i, length in enumerate(lengths):
            first, end = starts[i], starts[i + 1]
            assert 0 < end - first <= max_q
            assert 0 < length <= min(max_k, block_table.shape[1] * key.shape[1])
            output[first:end] = self._one(query[first:end], key, value, block_table[i], length, scale)
        assert not output.isnan().any()
        return output

    def _one(
        self, query: Tensor, key: Tensor, value: Tensor, table: Tensor, length: int, scale: float
    ) -> Tensor:
        pages = table[: -(-length // key.shape[1])].long()
        self.read.update(pages.tolist())
        groups = query.shape[1] // key.shape[2]
        k, v = (m[pages].flatten(0, 1)[:length].repeat_interleave(groups, 1).float() for m in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query.float(), k) * scale
        # The last query sees the last key.
        position = torch.arange(length - len(query), length)
        hidden = torch.arange(length)[None] > position[:, None]
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, v).to(query.dtype)

    def _check(
        self, query: Tensor, key: Tensor, value: Tensor, starts: Tensor, key_starts: Tensor,
        lengths: Tensor, table: Tensor,
    ) -> None:  # fmt: skip
        assert query.dtype in self.dtypes
        assert query.dtype == key.dtype == value.dtype
        assert (query.dim(), key.dim(), value.dim()) == (3, 4, 4)
        assert all(t.stride(-1) == 1 for t in (query, key, value, table))
        assert key.shape == value.shape
        assert key.shape[1] % 256 == 0
        assert query.shape[2] == key.shape[3] <= 256
        assert query.shape[2] % 8 == 0
        assert query.shape[1] % key.shape[2] == 0
        spans = len(lengths)
        assert spans > 0
        assert starts.shape == key_starts.shape == (spans + 1,)
        assert table.shape[0] == spans
        for part in (starts, key_starts, lengths, table):
            assert part.dtype == torch.int32
            assert part is table or part.is_contiguous()
