"""One step of the model on a CPU."""

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
from npt_core.engine.page_table import PAGE
from npt_core.engine.sequence import Span
from npt_core.engine.weights import MIN_ROWS, ModelWeights
from npt_core.native import Library

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
        config, attention = model.config, model.model.layers[0].self_attn
        compiled = library_for(model) if native else None
        self._exact = compiled is not None
        self.num_pages, self.page_size = num_pages, PAGE
        self.max_positions = min(config.max_position_embeddings, num_pages * PAGE)
        self.num_tokens: int = config.vocab_size
        # The last page of the longest prompt is computed whole.
        self._weights = ModelWeights(model, -(-self.max_positions // PAGE) * PAGE, compiled)
        self.memory = KeyValues(
            config.num_hidden_layers,
            num_pages,
            config.num_attention_heads,
            config.num_key_value_heads,
            self._weights.embedding,
            self._weights.cos.shape[-1],
            attention.scaling,
        )
        self._forward = self._forward_by(compiled, config.num_attention_heads, attention.scaling)

    def _forward_by(self, compiled: Library | None, heads: int, scale: float) -> Forward[Batch]:
        weights, memory = self._weights, self.memory
        if compiled is not None:
            attention = NativeAttention(compiled, memory, weights, heads, scale)
            return Forward(weights, attention, Kernels.native(compiled))
        kernels = Kernels.plain(weights.activation)
        return Forward(weights, RotaryAttention(memory, weights, kernels, heads), kernels)

    @torch.inference_mode()
    def run(self, spans: Seq[Span], between: Callable[[], None] = nothing) -> Tensor:
        """As `StepRunner.run`."""
        self._weights.refresh()
        batch = Batch.of(spans, self._exact)
        x = self._forward.hidden(batch, [layer.mlp.plastic for layer in self._weights.layers], between)
        count = batch.samples.shape[0]
        samples = batch.samples
        if not self._exact and 0 < count < MIN_ROWS:
            samples = torch.cat([samples, samples[-1:].expand(MIN_ROWS - count)])
        if count < x.shape[0]:
            x = x.index_select(0, samples)
        logits = self._forward.logits(x)[:count].float()
        between()
        return logits
