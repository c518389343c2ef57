"""One step of the model over a flattened batch, every token at the weights version of its sequence.

The same formulas as `npt_core.layers`, over `[rows, d]` instead of `[B, T, d]`, without padding,
and without the per-call work of a general-purpose forward: at small sizes that is most of the time.
"""

from collections.abc import Sequence as Seq
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from npt_core.engine.attention import KeyValues
from npt_core.engine.batch import Batch
from npt_core.engine.page_table import PAGE
from npt_core.engine.sequence import Span
from npt_core.engine.weights import MIN_ROWS, LayerWeights, ModelWeights


class Runner:
    """Computes steps of an `NPTForCausalLM`, and holds its keys and values in `num_pages` pages.

    What facts add is read from `mlp.plastic` of the model's layers.

    Raises:
        UnsupportedModel: a layer is not as `npt_core.model` makes it, or its rotary embedding
            depends on the batch.
    """

    draft_tokens = 4

    def __init__(self, model: Any, num_pages: int = 1024) -> None:
        config = model.config
        self.num_pages = num_pages
        self.max_positions = min(config.max_position_embeddings, num_pages * PAGE)
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        # The last page of the longest prompt is computed whole.
        self._weights = ModelWeights(model, -(-self.max_positions // PAGE) * PAGE)
        self._width = self._weights.cos.shape[-1]
        self._scale: float = model.model.layers[0].self_attn.scaling
        self.memory = KeyValues(
            config.num_hidden_layers,
            num_pages,
            self._heads,
            self._kv_heads,
            self._weights.embedding,
            self._width,
        )

    @torch.inference_mode()
    def run(self, spans: Seq[Span]) -> Tensor:
        """As `StepRunner.run`."""
        weights = self._weights
        weights.refresh()
        batch = Batch.of(spans, weights.embedding.device)
        masks = [self.memory.mask(segment, weights.embedding) for segment in batch.segments]
        rotary = weights.cos[batch.positions], weights.sin[batch.positions]
        x = F.embedding(batch.ids, weights.embedding)
        for index, layer in enumerate(weights.layers):
            a = self._attention(index, layer, layer.input_norm(x), rotary, batch, masks)
            residual = x + a if layer.residual else x
            x = residual + _mlp(layer, layer.mlp_norm(residual), a, batch)
        return self._logits(x, batch.samples)

    def _attention(
        self,
        index: int,
        layer: LayerWeights,
        n: Tensor,
        rotary: tuple[Tensor, Tensor],
        batch: Batch,
        masks: list[Tensor | None],
    ) -> Tensor:
        """Attention output `[rows, d]` of the normed input `n` `[rows, d]`; before `o_proj` in V2."""
        qkv = layer.qkv(n).view(n.shape[0], -1, self._width)
        rotated, v = qkv.split([self._heads + self._kv_heads, self._kv_heads], 1)
        rotated = _rotate(rotated, *rotary)
        q, k = rotated.split([self._heads, self._kv_heads], 1)
        self.memory.write(index, batch.slots, k, v)
        mixed = self.memory.attend(index, batch, masks, q, self._scale)
        return mixed if layer.o is None else layer.o(mixed)

    def _logits(self, x: Tensor, samples: Tensor) -> Tensor:
        count = samples.shape[0]
        if 0 < count < MIN_ROWS:
            samples = samples.expand(MIN_ROWS)
        if count < x.shape[0]:
            x = x.index_select(0, samples)
        return self._weights.head(self._weights.norm(x))[:count].float().cpu()


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of `[rows, heads, width]`; `cos` and signed `sin` `[rows, 1, width]`."""
    half = x.shape[-1] // 2
    flipped = torch.cat([x[..., half:], x[..., :half]], -1)
    return torch.addcmul(x * cos, flipped, sin)


def _mlp(layer: LayerWeights, n: Tensor, a: Tensor, batch: Batch) -> Tensor:
    """As `NPTMLP.forward`, for `[rows, d]`."""
    plastic = layer.mlp.plastic
    g, up = layer.gate_up(n).split(layer.gate_up.widths, -1)
    if plastic is not None:
        g = plastic.gate(n[:, None], g[:, None], batch.versions)[:, 0]
    z = layer.activation(layer.modulated(g, a, batch.scales)).mul_(up)
    y: Tensor = layer.down(z) if plastic is None else plastic.project(layer.down, z, batch.versions)
    return y if plastic is None else plastic.down(z[:, None], y[:, None], batch.versions)[:, 0]
