"""Models whose adapters do something, and the formulas of the model written out in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaForCausalLM
from transformers.generation.continuous_batching import PagedAttentionCache

from npt_core.config import NPTConfig
from npt_core.convert import convert_llama_to_npt
from npt_core.model import NPTForCausalLM


@torch.no_grad()
def awakened(model: NPTForCausalLM, seed: int = 3) -> NPTForCausalLM:
    """`model` with random adapter heads, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if ".adapter.B_" in name:
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model


def mixed_npt(llama: LlamaForCausalLM, **kwargs: Any) -> NPTForCausalLM:
    """Layer 0 plain, layer 1 V1, the upper half V2, all adapters awake."""
    v1 = convert_llama_to_npt(llama, [1], "v1", rank=6, **kwargs)
    return awakened(convert_llama_to_npt(v1, "upper_half", "v2"))


class Reference:
    """`npt_core.model` from its formulas alone: no module of transformers takes part."""

    def __init__(self, model: NPTForCausalLM) -> None:
        self.config: NPTConfig = model.config
        self.weights = {name: w.detach().double() for name, w in model.state_dict().items()}

    def logits(self, ids: Tensor, scale: float = 1.0) -> Tensor:
        """`ids` `[T]` to logits `[T, vocab]`."""
        x = self.weights["model.embed_tokens.weight"][ids]
        for layer in range(self.config.num_hidden_layers):
            x = self._layer(x, layer, scale)
        return self._norm(x, "model.norm") @ self.weights["lm_head.weight"].T

    def _layer(self, x: Tensor, layer: int, scale: float) -> Tensor:
        prefix = f"model.layers.{layer}."
        a = self._attention(self._norm(x, prefix + "input_layernorm"), prefix + "self_attn.")
        h = x if self.config.npt_layers.get(str(layer)) == "v2" else x + a
        n = self._norm(h, prefix + "post_attention_layernorm")
        gate = n @ self.weights[prefix + "mlp.gate_proj.weight"].T
        gate = self._modulated(gate, a, prefix + "mlp.adapter.", scale)
        up = n @ self.weights[prefix + "mlp.up_proj.weight"].T
        return h + (gate / (1 + (-gate).exp()) * up) @ self.weights[prefix + "mlp.down_proj.weight"].T

    def _modulated(self, gate: Tensor, a: Tensor, prefix: str, scale: float) -> Tensor:
        if prefix + "A.weight" not in self.weights:
            return gate
        low = a @ self.weights[prefix + "A.weight"].T
        zero = torch.zeros(self.config.intermediate_size, low.shape[-1], dtype=low.dtype)
        mult = low @ self.weights.get(prefix + "B_mult.weight", zero).T
        add = low @ self.weights.get(prefix + "B_add.weight", zero).T
        return gate * (1 + scale * mult) + scale * add

    def _norm(self, x: Tensor, name: str) -> Tensor:
        mean_square = (x * x).mean(-1, keepdim=True)
        return x / (mean_square + self.config.rms_norm_eps).sqrt() * self.weights[name + ".weight"]

    def _attention(self, x: Tensor, prefix: str) -> Tensor:
        c, length = self.config, len(x)
        width = c.hidden_size // c.num_attention_heads
        q, k, v = (
            (x @ self.weights[f"{prefix}{name}_proj.weight"].T).view(length, -1, width) for name in "qkv"
        )
        q, k = self._rotated(q), self._rotated(k)
        heads = []
        for head in range(c.num_attention_heads):
            shared = head * c.num_key_value_heads // c.num_attention_heads
            scores = q[:, head] @ k[:, shared].T / math.sqrt(width)
            future = torch.ones(length, length, dtype=torch.bool).triu(1)
            heads.append(scores.masked_fill(future, -math.inf).softmax(-1) @ v[:, shared])
        return torch.cat(heads, -1) @ self.weights[prefix + "o_proj.weight"].T

    def _rotated(self, x: Tensor) -> Tensor:
        """Rotary embedding of `[T, heads, width]` with the frequency scaling of Llama 3."""
        half = x.shape[-1] // 2
        rope = self.config.rope_parameters
        rotated = torch.empty_like(x)
        for i in range(half):
            frequency = _llama3(rope["rope_theta"] ** (-i / half), rope)
            for position in range(len(x)):
                cos, sin = math.cos(position * frequency), math.sin(position * frequency)
                first, second = x[position, :, i], x[position, :, i + half]
                rotated[position, :, i] = first * cos - second * sin
                rotated[position, :, i + half] = second * cos + first * sin
        return rotated


def _llama3(frequency: float, rope: dict[str, Any]) -> float:
    turns = rope["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    if turns > high:
        return frequency
    if turns < low:
        return frequency / rope["factor"]
    smooth = (turns - low) / (high - low)
    return (1 - smooth) * frequency / rope["factor"] + smooth * frequency


def by_transformers(
    model: Any, prompt: Sequence[int], new: int, end: int | None = None, **more: Any
) -> list[int]:
    """One prompt alone, greedy, by `GenerationMixin.generate`, without the end token."""
    output = model.generate(
        torch.tensor([list(prompt)]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=0,
        **more,
    )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens[: tokens.index(end)] if end in tokens else tokens


def by_continuous_batching(model: Any, prompts: Sequence[Sequence[int]], new: int) -> list[list[int]]:
    """All prompts at once, greedy, by `generate_batch` of transformers, in pages of 16 tokens."""
    pages = sum(-(-(len(prompt) + new) // 16) for prompt in prompts)
    # Left to itself, it takes nine tenths of the machine's memory for its pages.
    config = ContinuousBatchingConfig(page_size=16, num_blocks=pages + 8, max_batch_tokens=256)
    greedy = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0)
    update = PagedAttentionCache.update
    with patch.object(PagedAttentionCache, "update", autospec=True, side_effect=update) as paged:
        outputs = model.generate_batch(
            inputs=[list(prompt) for prompt in prompts],
            generation_config=greedy,
            continuous_batching_config=config,
            progress_bar=False,
        )
    assert paged.called, "the model did not attend over pages"
    assert not [output.error for output in outputs.values() if output.error]
    answers = {tuple(output.prompt_ids): output.generated_tokens for output in outputs.values()}
    return [list(answers[tuple(prompt)]) for prompt in prompts]


@dataclass(frozen=True)
class Parting:
    """Where two greedy answers to one prompt part: both `tokens`, and how far apart their logits are."""

    position: int
    tokens: tuple[int | None, int | None]
    margin: float


def parting(
    model: Any, prompt: Sequence[int], one: Sequence[int], other: Sequence[int], **more: Any
) -> Parting | None:
    """None for equal answers. Where one has ended, the margin is infinite."""
    if list(one) == list(other):
        return None
    same = 0
    while same < min(len(one), len(other)) and one[same] == other[same]:
        same += 1
    tokens = tuple(answer[same] if same < len(answer) else None for answer in (one, other))
    if None in tokens:
        return Parting(same, tokens, math.inf)
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *one[:same]]]), **more).logits[0, -1]
    first, second = logits[tokens[0]], logits[tokens[1]]
    return Parting(same, tokens, abs(float(first - second)))
