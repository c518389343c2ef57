"""One step of the model on a GPU: decoding by CUDA graphs, everything else launch by launch."""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any, cast

import torch
from torch import Tensor

from npt_core.bank.resident import Places, ResidentLayer
from npt_core.engine.forward import Forward, RotaryAttention, nothing
from npt_core.engine.graphs import LARGEST, Capture, CudaCapture, DecodeGraphs
from npt_core.engine.kernels import Kernels
from npt_core.engine.page_table import pages_for
from npt_core.engine.paged_attention import PAGE_SIZE, PagedKeyValues, check_attention, page_bytes
from npt_core.engine.paged_batch import Laid, PagedBatch
from npt_core.engine.sequence import Span
from npt_core.engine.transfer import sent
from npt_core.engine.weights import ModelWeights, UnsupportedModel
from npt_core.layers import Plastic

MEMORY_SHARE = 0.8
"""Part of a GPU's memory that weights, facts so far and pages may take. The rest is for the tensors of a
step and its graphs, for consolidation, and for facts to come.
"""


class PagedRunner:
    """Computes steps of an `NPTForCausalLM` on the GPU that it lies on, and holds its keys and values in
    `num_pages` pages, or in as many as fit its free memory.

    What facts add is read from `mlp.plastic` of the model's layers; the bank must be there before the
    runner is made, or its memory is not counted. The weights of maps that are computed as one become
    parts of one matrix.

    Raises:
        UnsupportedModel: as for `Runner`; or the kernel for attention, or the memory of the GPU, does not
            fit the model.
    """

    draft_tokens = 3  # with the row before them, a full graph
    batch_tokens = 2048

    def __init__(
        self,
        model: Any,
        num_pages: int | None = None,
        capture: Capture | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        config, embedding = model.config, model.model.embed_tokens.weight
        attention = model.model.layers[0].self_attn
        shape = config.num_hidden_layers, config.num_key_value_heads, attention.head_dim
        self._device: torch.device = embedding.device
        check_attention(embedding.dtype, attention.head_dim, _capability(self._device))
        self._model = model
        self._weights = ModelWeights(model, config.max_position_embeddings)
        if num_pages is None:
            torch.cuda.empty_cache()  # what loading and stacking let go of is free, too
            free, total = torch.cuda.mem_get_info(self._device)
            # One more, for rows that only pad a batch.
            num_pages = pages_that_fit(free, total, page_bytes(*shape, embedding.dtype)) - 1
        self.num_pages, self.page_size = num_pages, PAGE_SIZE
        self.max_positions = min(config.max_position_embeddings, num_pages * PAGE_SIZE)
        self.num_tokens: int = config.vocab_size
        self.memory = PagedKeyValues(
            config.num_hidden_layers,
            num_pages + 1,
            config.num_key_value_heads,
            embedding,
            attention.head_dim,
            attention.scaling,
        )
        kernels = kernels or Kernels.compiled(self._weights.activation)
        mixing = RotaryAttention(self.memory, self._weights, kernels, config.num_attention_heads)
        self._forward = Forward(self._weights, mixing, kernels)
        self._residents = [ResidentLayer() for _ in self._weights.layers]
        self.graphs = DecodeGraphs(
            lambda batch: self._logits(batch, None),
            capture or CudaCapture(),
            pages_for(self.max_positions, PAGE_SIZE),
            PAGE_SIZE,
            num_pages,
            self._device,
        )

    @torch.inference_mode()
    def run(self, spans: Seq[Span], _between: Callable[[], None] = nothing) -> Tensor:
        """As `StepRunner.run`; a step is launched as a whole, and nothing goes between."""
        if self._weights.refresh():
            self.graphs.clear()
        laid = Laid.of(spans, PAGE_SIZE)
        places = self._follow(laid.versions)
        # Readers of an earlier generation of folded weights are rare, and soon gone.
        current = all(resident.current for resident in self._residents)
        if laid.decoding and current and len(laid.ids) <= LARGEST:
            return self.graphs.run(laid, places)
        samples = sent(laid.samples, torch.int64, self._device)
        return self._logits(PagedBatch.of(laid, self._device), samples).float()

    def _logits(self, batch: PagedBatch, samples: Tensor | None) -> Tensor:
        x = self._forward.hidden(batch, cast(Seq[Plastic], self._residents))
        return self._forward.logits(x if samples is None else x.index_select(0, samples))

    def _follow(self, versions: Seq[int]) -> Places:
        """What was published since the last step, and where it lies."""
        oldest, newest = min(versions), max(versions)
        layers = zip(self._residents, self._weights.layers, strict=True)
        found = [resident.follow(layer.mlp.plastic, oldest, newest) for resident, layer in layers]
        return tuple(place for places in found for place in places)


def pages_that_fit(free: int, total: int, bytes_of_a_page: int) -> int:
    """Pages for a GPU with so many bytes. Raises UnsupportedModel if not even two fit."""
    pages = int(free - (1 - MEMORY_SHARE) * total) // bytes_of_a_page
    if pages < 2:
        raise UnsupportedModel(
            f"{free / 1e9:.1f} of {total / 1e9:.1f} GB are free on the GPU: too little for keys and values, "
            f"of which a page takes {bytes_of_a_page / 1e6:.1f} MB"
        )
    return pages


def _capability(device: torch.device) -> tuple[int, int] | None:
    """The compute capability of a GPU, if it is one that is there."""
    there = device.type == "cuda" and torch.cuda.is_available()
    return torch.cuda.get_device_capability(device) if there else None
