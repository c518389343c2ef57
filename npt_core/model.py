"""NPT as a Hugging Face architecture: the names and behaviour of Llama, with NPT layers.

`weights_version` (int or long `[B]`, `None` for the newest) and `modulation_scale` (float or
`[B]`, `None` for 1, 0 switches dynamic modulation off) may be given to `forward` and `generate`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.utils import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel, slice_logits_to_keep
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from npt_core.config import LayerSpec, NPTConfig
from npt_core.layers import AdapterLinear, ModulationScale, NPTDecoderLayer, WeightsVersion
from npt_core.permanent import Consolidation, consolidate_modulation


class NPTPreTrainedModel(PreTrainedModel):
    """Shared plumbing: how to initialise, shard, checkpoint and record an NPT model."""

    config: NPTConfig
    config_class = NPTConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["NPTDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": NPTDecoderLayer, "attentions": LlamaAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # By linear map, not by adapter: transformers passes over modules without own parameters.
        if isinstance(module, AdapterLinear):
            module.reset_parameters()
        else:
            super()._init_weights(module)  # type: ignore[no-untyped-call]


class NPTModel(NPTPreTrainedModel):
    """Embeddings, layers and the final norm; `[B, T]` ids to `[B, T, d]` hidden states."""

    def __init__(self, config: NPTConfig) -> None:
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            NPTDecoderLayer(config, layer) for layer in range(config.num_hidden_layers)
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()  # type: ignore[no-untyped-call]

    @merge_with_config_defaults  # type: ignore[untyped-decorator]
    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        weights_version: WeightsVersion = None,
        modulation_scale: ModulationScale = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """As `LlamaModel.forward`; raises `ValueError` unless exactly one input is given."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = (torch.arange(hidden.shape[1], device=hidden.device) + seen)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        rotary = self.rotary_emb(hidden, position_ids=position_ids)
        for layer in self.layers[: self.config.num_hidden_layers]:
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_embeddings=rotary,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                weights_version=weights_version,
                modulation_scale=modulation_scale,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), past_key_values=past_key_values)


class NPTForCausalLM(NPTPreTrainedModel, GenerationMixin):
    """A causal language model with the parameter names of `LlamaForCausalLM`."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # type: ignore[dict-item]
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: NPTConfig) -> None:
        super().__init__(config)
        self.model = NPTModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        weights_version: WeightsVersion = None,
        modulation_scale: ModulationScale = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As `LlamaForCausalLM.forward`: `[B, T]` ids to logits `[B, T, vocab]`, and the loss
        where `labels` `[B, T]` are given (-100 is ignored, the shift happens inside).
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            weights_version=weights_version,
            modulation_scale=modulation_scale,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def consolidate_weights(
        self,
        input_ids: Tensor,
        layers: LayerSpec = "all",
        token_idx: int = -1,
        alpha: float = 0.1,
        apply: bool = True,
    ) -> Consolidation:
        """Make what `input_ids` `[1, T]` modulates at one token permanent in `gate_proj`.

        See `npt_core.permanent.consolidate_modulation`, which this calls.
        """
        return consolidate_modulation(self, input_ids, layers, token_idx, alpha, apply)


AutoConfig.register(NPTConfig.model_type, NPTConfig, exist_ok=True)
AutoModel.register(NPTConfig, NPTModel, exist_ok=True)
AutoModelForCausalLM.register(NPTConfig, NPTForCausalLM, exist_ok=True)
