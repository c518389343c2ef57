"""A tiny random Llama with everything that can go wrong: GQA, scaled rope, untied head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

logging.disable_progress_bar()

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
TINY: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rope_parameters": LLAMA3_ROPE,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--stress", action="store_true", help="the long forms of the tests that have one")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first, so that at the end no process waits for another."""
    items.sort(key=lambda item: "torture" not in item.path.parts)


@pytest.fixture(scope="session")
def stress(request: pytest.FixtureRequest) -> bool:
    """Whether a test is to take its long form: minutes instead of seconds."""
    return bool(request.config.getoption("--stress"))


MakeLlama = Callable[..., LlamaForCausalLM]


@pytest.fixture
def make_llama() -> MakeLlama:
    """Builds a seeded tiny Llama in eval mode; keyword arguments override the configuration."""

    def make(**overrides: Any) -> LlamaForCausalLM:
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**{**TINY, **overrides})).eval()

    return make


@pytest.fixture
def llama(make_llama: MakeLlama) -> LlamaForCausalLM:
    return make_llama()


@pytest.fixture
def ids() -> torch.Tensor:
    """Token ids `[2, 13]` without special tokens."""
    return torch.randint(3, 61, (2, 13), generator=torch.Generator().manual_seed(1))
