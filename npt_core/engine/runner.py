"""One step of the model on a CPU."""

import copy
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any

import torch
from torch import Tensor

from npt_core.engine.attention import KeyValues
from npt_core.engine.batch import Batch
from npt_core.engine.forward import Forward, RotaryAttention, nothing
from npt_core.engine.kernels import Kernels, library_for
from npt_core.engine.native_attention import NativeAttention
from npt_core.engine.page_table import PAGE, pages_for
from npt_core.engine.sequence import Span
from npt_core.engine.weights import MIN_ROWS, ModelWeights

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
        self._model, self._library, self._reads_bank = model, compiled, True
        self._take_pages(num_pages)

    def beside(self, num_pages: int) -> "Runner":
        """Another runner of the same weights, which reads no bank, with pages of its own."""
        other = copy.copy(self)
        other._reads_bank = False
        other._take_pages(num_pages, untouched=self.exact)
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
        self._weights.refresh()
        batch = Batch.of(spans, self.exact)
        plastics = [layer.mlp.plastic if self._reads_bank else None for layer in self._weights.layers]
        x = self._forward.hidden(batch, plastics, between)
        count = batch.samples.shape[0]
        samples = batch.samples
        if not self.exact and 0 < count < MIN_ROWS:
            samples = torch.cat([samples, samples[-1:].expand(MIN_ROWS - count)])
        if count < x.shape[0]:
            x = x.index_select(0, samples)
        logits = self._forward.logits(x)[:count].float()
        between()
        return logits
