"""Teacher pretraining: a plain Llama on the reference corpus."""

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from npt_core.model import NPTForCausalLM

MAX_POSITIONS = 512
VOCABULARY = 2048


def teacher_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """The CPU-sized reference architecture: 8.6 M parameters."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=320,
        intermediate_size=960,
        num_hidden_layers=6,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def new_teacher(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised teacher; eager attention trains fastest on CPU at this length."""
    config = teacher_config(tokenizer)
    config._attn_implementation = "eager"
    return LlamaForCausalLM(config)


def weighted_cross_entropy(logits: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Mean next-token loss; `logits [B, T-1, V]`, `ids` and `weights` `[B, T]`, weights of the
    target.
    """
    losses = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    kept = weights[:, 1:].flatten()
    return (losses * kept).sum() / kept.sum()


class PretrainingLoss(nn.Module):
    """Next-token loss of one model."""

    def __init__(self, model: LlamaForCausalLM | NPTForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """`loss`, which is the cross entropy `ce`."""
        logits = self.model(ids[:, :-1], use_cache=False).logits
        ce = weighted_cross_entropy(logits, ids, weights)
        return {"loss": ce, "ce": ce}
