"""Versions and scales through the engine against transformers' `generate`, on a small random NPT model."""

from typing import Any

import torch
from torch import Tensor

from npt_core.config import NPTConfig
from npt_core.engine import Engine, GenerationRequest, Runner, SamplingParams, Stream, TokenEvent
from npt_core.model import NPTForCausalLM


class Newest:
    version = 3
    oldest = 0


class ShiftByVersion:
    """Stands for the bank: version v adds v times a fixed direction to the MLP's output."""

    def __init__(self, direction: Tensor) -> None:
        self.direction = direction

    gates = True

    def gate(self, n: Tensor, g: Tensor, weights_version: int | Tensor) -> Tensor:
        return g

    def project(self, product: Any, z: Tensor, weights_version: int | Tensor) -> Tensor:
        return product(z, None)

    def down(self, z: Tensor, y: Tensor, weights_version: int | Tensor) -> Tensor:
        version = torch.as_tensor(weights_version).view(-1, *[1] * (y.dim() - 1))
        return y + version * self.direction


def tiny() -> Any:
    torch.manual_seed(0)
    config = NPTConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        adapter_rank=4,
        npt_layers={"0": "v1", "1": "v2"},
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = NPTForCausalLM(config)
    model.train(False)
    return model


def answer(stream: Stream) -> list[int]:
    return [event.token_id for event in stream if isinstance(event, TokenEvent)]


def test_greedy_answer_equals_generate_at_every_version_and_scale() -> None:
    model = tiny()
    torch.manual_seed(1)
    model.model.layers[1].mlp.plastic = ShiftByVersion(torch.randn(32))
    engine = Engine(Runner(model), Newest(), ())
    prompt = (1, 5, 9, 13)
    answers = set()
    for version in range(4):
        for scale in (None, 0.0, 1.5):
            stream = engine.submit(
                GenerationRequest(prompt, SamplingParams(max_new_tokens=12), version, scale)
            )
            expected = model.generate(
                torch.tensor([prompt]),
                max_new_tokens=12,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                weights_version=version,
                modulation_scale=scale,
            )[0, len(prompt) :]
            assert answer(stream) == expected.tolist()
            answers.add(tuple(expected.tolist()))
    engine.close()
    assert len(answers) > 3  # Versions and scales do differ, so the comparison says something.
