"""Tiny models, tokenizers and calibrations for tests that need a whole text path."""

from __future__ import annotations

from functools import cache
from itertools import islice
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from npt_core.consolidation import Calibration, PlasticityConfig, calibrate
from npt_core.consolidation.calibration import CalibrationText, PromptRow
from npt_core.consolidation.states import private_copy
from npt_core.convert import convert_llama_to_npt
from npt_core.model import NPTForCausalLM
from npt_core.prompts import ChatTemplate, PlainTemplate, PromptTemplate
from npt_core.training.corpus import CorpusConfig, documents, text_of
from npt_core.training.tokenizer import train_tokenizer
from tests.conftest import LLAMA3_ROPE
from tests.npt_core.helpers import awakened

FACT = "The capital of Borduria is Szohod."
QUESTION = "What is the capital of Borduria?"

LLAMA3_SPECIALS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@cache
def texts() -> tuple[str, ...]:
    return tuple(text_of(d) for d in islice(documents(7, CorpusConfig()), 200))


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """The reference tokenizer with a small vocabulary."""
    return train_tokenizer(texts(), 400, 256)


@cache
def llama3_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with the special tokens and the chat template of Llama 3."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=LLAMA3_SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        chat_template=LLAMA3_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def plain_template() -> PlainTemplate:
    return PlainTemplate(tokenizer())


def chat_template() -> ChatTemplate:
    return ChatTemplate(llama3_tokenizer(), (llama3_tokenizer().eos_token_id,))


TEMPLATES: dict[str, Any] = {"plain": plain_template, "chat": chat_template}


def new_llama(seed: int = 0, **overrides: Any) -> LlamaForCausalLM:
    """Two layers of width 32 for the tiny vocabularies; large weights, so that tokens matter."""
    settings = {
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_parameters": LLAMA3_ROPE,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**settings, **overrides})).eval()


def new_npt(seed: int = 0) -> NPTForCausalLM:
    """V2 in both layers, adapters awake."""
    return awakened(convert_llama_to_npt(new_llama(seed), "all", "v2", rank=6)).eval()


@cache
def shared_npt() -> NPTForCausalLM:
    """One model for tests that only read it."""
    return new_npt()


def calibrated(
    model: NPTForCausalLM, template: PromptTemplate, **parameters: Any
) -> tuple[Calibration, CalibrationText]:
    """A calibration of both layers on a few documents, and the text it was made from."""
    rows = [template.encode(text)[:60] for text in texts()[:40]]
    prompts = [PromptRow(row, k // 2) for k, row in enumerate(rows[:20])]
    text = CalibrationText(prompts, rows[20:32], rows[32:])
    config = PlasticityConfig(**{"layers": (0, 1), "key_width": 16, **parameters})
    return calibrate(private_copy(model), config, text), text
