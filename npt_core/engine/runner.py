"""One step of the model on a CPU."""

import copy
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any

import torch
from torch import Tensor

from npt_core.engine.attention import KeyValues
from npt_core.engine.batch import Batch
from npt_core.engine.forward import Forward, RotaryAttention, Watch, nobody, nothing
from npt_core.engine.kernels import Kernels, library_for
from npt_core.engine.native_attention import NativeAttention
from npt_core.engine.page_table import PAGE, pages_for
from npt_core.engine.sequence import Span
from npt_core.engine.weights import MIN_ROWS, ModelWeights
from npt_core.layers import Plastic

PAGES = 1024


class Runner:
    """Computes steps of an `NPTForCausalLM` on a CPU, and holds its keys and values in `num_pages` pages.

    What facts add is read from `mlp.plastic` of the model's layers. Compiled kernels compute what they can,
    unless `native` is false.

    Raises:
        UnsupportedModel: a layer is not as `npt_core.model` makes it, or its rotary embedding
            depends on the batch.
    """

    draft_tokens, batch_tokens = 4, 128

    def __init__(self, model: Any, num_pages: int = PAGES, native: bool = True) -> None:
        config = model.config
        compiled = library_for(model) if native else None
        self.exact = compiled is not None
        """Whether each row is computed by itself, however rows are shared out among steps."""
        self.page_size = PAGE
        self.num_tokens: int = config.vocab_size
        self.positions: int = config.max_position_embeddings
        """Tokens that a sequence may have, whatever there are pages for."""
        # The last page of the longest prompt may be computed whole.
        self._weights = ModelWeights(model, PAGE * pages_for(self.positions), compiled)
        self._model, self._library = model, compiled
        self._plastics: Seq[Plastic | None] | None = None  # those of the model
        self._take_pages(num_pages)

    def beside(self, num_pages: int) -> "Runner":
        """Another runner of the same weights, with pages of its own, which reads no bank."""
        other = self.reading(None)
        other._take_pages(num_pages, untouched=self.exact)
        return other

    def reading(self, plastics: Seq[Plastic | None] | None) -> "Runner":
        """The same, with the same pages, but what facts add is read from `plastics`, one a layer, or there is
        nothing.
        """
        other = copy.copy(self)
        other._plastics = plastics or [None] * len(self._weights.layers)
        return other

    def _take_pages(self, num_pages: int, untouched: bool = False) -> None:
        config, weights, library = self._model.config, self._weights, self._library
        heads, scale = config.num_attention_heads, self._model.model.layers[0].self_attn.scaling
        self.num_pages = num_pages
        self.max_positions = min(self.positions, num_pages * PAGE)
        self.memory = KeyValues(
            config.num_hidden_layers,
            num_pages,
            heads,
            config.num_key_value_heads,
            weights.embedding,
            weights.cos.shape[-1],
            scale,
            untouched,
        )
        if library is not None:
            attention = NativeAttention(library, self.memory, weights, heads, scale)
            self._forward: Forward[Batch] = Forward(weights, attention, Kernels.native(library))
        else:
            kernels = Kernels.plain(weights.activation)
            self._forward = Forward(weights, RotaryAttention(self.memory, weights, kernels, heads), kernels)

    @torch.inference_mode()
    def run(self, spans: Seq[Span], between: Callable[[], None] = nothing) -> Tensor:
        """As `StepRunner.run`."""
        batch = Batch.of(spans, self.exact)
        if self.exact:
            return self._logits(self._hidden(batch, between, batch.samples), between)
        # Torch's products need some rows.
        count = batch.samples.shape[0]
        more = batch.samples[-1:].expand(max(MIN_ROWS - count, 0) if count else 0)
        x = self._hidden(batch, between)[torch.cat([batch.samples, more])]
        return self._logits(x, between)[:count]

    @torch.inference_mode()
    def read(
        self, spans: Seq[Span], rows: Seq[int], layers: Seq[int], between: Callable[[], None] = nothing
    ) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor]]:
        """Of `rows` of the batch of `spans`, which have no drafts: next-token logits `[n, vocab]`, float32,
        and of each of `layers` what its `down_proj` reads, `[n, d_ffn]`, and what it gives, `[n, d]`. The
        runner is `exact`.
        """
        batch, chosen = Batch.of(spans, self.exact), torch.tensor(rows, dtype=torch.int64)
        keys, outputs = dict[int, Tensor](), dict[int, Tensor]()

        def watch(layer: int, key: Tensor, output: Tensor) -> None:
            if layer in layers:
                last = layer == len(self._weights.layers) - 1
                keys[layer], outputs[layer] = (x if last else x[chosen] for x in (key, output))

        x = self._hidden(batch, between, chosen, watch)
        return self._logits(x, between), keys, outputs

    def _hidden(
        self,
        batch: Batch,
        between: Callable[[], None],
        chosen: Tensor | None = None,
        watch: Watch = nobody,
    ) -> Tensor:
        self._weights.refresh()
        plastics = self._plastics or [layer.mlp.plastic for layer in self._weights.layers]
        if chosen is not None and len(chosen) == len(batch.ids):
            chosen = None  # as in decoding
        return self._forward.hidden(batch, plastics, between, chosen, watch)

    def _logits(self, x: Tensor, between: Callable[[], None]) -> Tensor:
        logits = self._forward.logits(x).float()
        between()
        return logits
