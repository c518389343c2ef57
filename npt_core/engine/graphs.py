"""Decoding steps captured as CUDA graphs: one launch instead of hundreds.

A graph replays kernels on fixed addresses and shapes. So decoding batches are padded to a power of two
of rows, whose inputs are copied into the same room before each replay: ids, positions, slots, versions,
scales, lengths, tables of pages. Versions are data, so one graph serves all of them.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from npt_core.bank.resident import Places
from npt_core.engine.paged_batch import Laid, PagedBatch

log = logging.getLogger(__name__)

LARGEST = 512
"""Rows of the largest graph; a larger batch fills the GPU without one."""


class Replay(Protocol):
    """A captured step: computes it again, on what its inputs hold now."""

    def replay(self) -> Any: ...


class Capture(Protocol):
    """Captures what `step` does, as often as it may be called; returns it and the tensor it writes."""

    def __call__(self, step: Callable[[], Tensor], /) -> tuple[Replay, Tensor]: ...


class CudaCapture:
    """Captures with `torch.cuda.CUDAGraph`; all graphs share one pool of memory."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, step: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        step()  # What is compiled or allocated at its first use must not be while a capture runs.
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Other threads of the service may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = step()
        return graph, output


@dataclass(frozen=True, slots=True)
class _Captured:
    inputs: PagedBatch
    output: Tensor  # [rows, vocab]
    graph: Replay


class DecodeGraphs:
    """Graphs of `step`, a forward over single rows to logits `[rows, vocab]`, by their number of rows.

    `pages` is the most that a sequence has; rows that only pad a batch write to the page `scratch`.
    """

    def __init__(
        self,
        step: Callable[[PagedBatch], Tensor],
        capture: Capture,
        pages: int,
        page_size: int,
        scratch: int,
        device: torch.device,
    ) -> None:
        self._step, self._capture = step, capture
        self._pages, self._page_size, self._scratch, self._device = pages, page_size, scratch, device
        self._captured: dict[int, _Captured | None] = {}  # None: its capture failed
        self._places: Places = ()

    @property
    def buckets(self) -> list[int]:
        """Numbers of rows that are captured now."""
        return sorted(bucket for bucket, captured in self._captured.items() if captured)

    def clear(self) -> None:
        """Forget every graph, and which failed: what they read is no longer what the model is."""
        self._captured.clear()

    def run(self, laid: Laid, places: Places) -> Tensor:
        """Logits `[rows, vocab]`, float32, of `laid`, which is decoding, by the graph of its size.

        `places` are what the step reads beside its inputs. Where they are not the tensors that graphs were
        captured with, all are captured anew, each when it is needed. Rows for which that fails are computed
        without a graph.
        """
        if len(places) != len(self._places) or any(
            a is not b for a, b in zip(places, self._places, strict=True)
        ):
            self.clear()
            self._places = places
        rows = len(laid.ids)
        bucket = bucket_of(rows)
        laid.padded(bucket, self._scratch)
        if bucket not in self._captured:
            self._captured[bucket] = self._attempted(bucket, laid)
        captured = self._captured[bucket]
        if captured is None:
            return self._step(PagedBatch.of(laid, self._device))[:rows].float()
        captured.inputs.fill(laid)
        captured.graph.replay()
        # A copy: the next replay writes to the same place.
        return captured.output[:rows].to(torch.float32, copy=True)

    def _attempted(self, bucket: int, laid: Laid) -> _Captured | None:
        """A graph for `bucket` rows; None where it cannot be captured, for want of memory, say: that is no
        reason to answer nobody.
        """
        inputs = PagedBatch.standing(bucket, self._pages, self._page_size, self._device)
        inputs.fill(laid)
        try:
            graph, output = self._capture(lambda: self._step(inputs))
        except Exception:
            log.exception("steps of %d rows are computed without a graph", bucket)
            return None
        return _Captured(inputs, output, graph)


def bucket_of(rows: int) -> int:
    """The least power of two that holds `rows`."""
    return 1 << (rows - 1).bit_length()
