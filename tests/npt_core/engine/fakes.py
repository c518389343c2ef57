"""A model that counts: after token t comes t + 1 + weights_version, modulo the vocabulary."""

import threading
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

VOCAB = 64


class CountingModel:
    """With a `gate`, every forward first waits for one permit, so tests decide when it steps."""

    def __init__(self, gate: threading.Semaphore | None = None, max_positions: int = 48) -> None:
        self.config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=max_positions,
        )
        self.device = torch.device("cpu")
        self.gate = gate
        self.entered = threading.Semaphore(0)
        self.calls: list[dict[str, Any]] = []

    def __call__(self, input_ids: Tensor, **kwargs: Any) -> Any:
        self.entered.release()
        if self.gate is not None:
            self.gate.acquire()
        self.calls.append({"ids": input_ids.tolist(), **kwargs})
        following = (int(input_ids[0, -1]) + 1 + kwargs["weights_version"]) % VOCAB
        logits = torch.zeros(1, 1, VOCAB)
        logits[0, 0, following] = 10.0
        return SimpleNamespace(logits=logits)


class BrokenModel(CountingModel):
    """Fails in its second forward."""

    def __call__(self, input_ids: Tensor, **kwargs: Any) -> Any:
        if self.calls:
            raise RuntimeError("out of memory")
        return super().__call__(input_ids, **kwargs)
