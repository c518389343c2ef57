"""On a real GPU: `pytest -m gpu`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from npt_core.bank import Bank, Columns, FactWeights, Whitening
from npt_core.consolidation import WriteRequest
from npt_core.convert import convert_llama_to_npt
from npt_core.engine import Engine, EngineConfig, GenerationRequest, SamplingParams, Span
from npt_core.engine.paged_runner import PagedRunner
from npt_core.loading import load_runtime
from npt_core.model import NPTForCausalLM
from tests.npt_core.engine.eager import Captures
from tests.npt_core.engine.test_paged_runner import decoding
from tests.npt_core.engine.test_runner import Base, heard, llama, prompts
from tests.npt_core.helpers import awakened, by_transformers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SHAPE: dict[str, Any] = {
    "hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "num_key_value_heads": 2,
    "num_hidden_layers": 4, "vocab_size": 2048, "max_position_embeddings": 2048, "initializer_range": 0.05,
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> NPTForCausalLM:
    made = awakened(convert_llama_to_npt(llama(**SHAPE), "all", "v2", rank=64))
    return made.to(torch.bfloat16).to("cuda").eval()


def fact(seed: int, rows: int = 6) -> FactWeights:
    draw = torch.Generator().manual_seed(seed)
    keys = F.normalize(torch.randn(rows, 64, generator=draw), dim=-1)
    values = 4 * torch.randn(rows, 512, generator=draw)
    return FactWeights({2: Columns(keys, values, torch.full((rows,), 0.1), torch.zeros(rows, 1))})


def bank_of(model: NPTForCausalLM) -> Bank:
    draw = torch.Generator().manual_seed(1)
    space = Whitening(torch.zeros(1536), torch.randn(1536, 64, generator=draw))
    return Bank(model, {2: space}).attach()


def test_most_greedy_tokens_equal_those_of_generate(model: NPTForCausalLM) -> None:
    """All but those where two tokens are nearly as likely, which bfloat16 cannot tell apart."""
    asked = [tuple(p[i % len(p)] for i in range(40 * n)) for n, p in enumerate(prompts(12), 1)]
    engine = Engine(PagedRunner(model, 200), Base(), (), EngineConfig(max_running=8, batch_tokens=256))
    params = SamplingParams(max_new_tokens=32)
    answers = [heard(stream) for stream in [engine.submit(GenerationRequest(p, params)) for p in asked]]
    engine.close()
    with torch.device("cuda"):
        wanted = [by_transformers(model, prompt, 32) for prompt in asked]
    agree = [_common(a, b) for a, b in zip(answers, wanted, strict=True)]
    assert sum(agree) >= 0.7 * 32 * len(asked), agree


def _common(one: list[int], other: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))


def test_logits_are_near_those_of_the_model(model: NPTForCausalLM) -> None:
    runner = PagedRunner(model, 16)
    for length in (2, 17, 300, 600):
        sequence = decoding(0, 1, 2, length=length)
        found = runner.run([Span(sequence, 0, length)])[0]
        with torch.inference_mode():
            ids = torch.tensor([sequence.tokens], device="cuda")
            wanted = model(ids).logits[0, -1].float()
        assert F.cosine_similarity(found, wanted, dim=0) > 0.999


def test_graphs_give_the_bits_of_launches_and_read_publications(model: NPTForCausalLM) -> None:
    bank = bank_of(model)
    captured, launched = PagedRunner(model, 16), PagedRunner(model, 16, Captures())
    bank.publish(1, {"a": fact(1)})

    def both(version: int, count: int) -> Tensor:
        sequences = [decoding(page, length=20 + page, version=version) for page in range(count)]
        for runner in (captured, launched):
            runner.run([Span(s, 0, len(s.tokens) - 1) for s in sequences])
        spans = [Span(s, len(s.tokens) - 1, len(s.tokens)) for s in sequences]
        found, wanted = captured.run(spans), launched.run(spans)
        assert torch.equal(found, wanted)
        return found

    first = {count: both(1, count) for count in (1, 3, 8)}
    bank.publish(2, {"b": fact(2)})
    second = both(2, 3)
    assert not torch.equal(second, first[3])
    assert torch.equal(both(1, 3), first[3])  # a reader of the version before
    bank.publish(3, {"c": fact(3, 40)})  # the room grows: captured anew
    both(3, 3)
    bank.publish(4, {}, ["a", "b", "c"])
    assert not torch.equal(both(4, 3), second)
    assert torch.equal(both(1, 3), first[3])


def test_the_reference_model_learns_there() -> None:
    runtime = load_runtime("models/reference", device="cuda")
    engine = Engine(runtime.runner(64), runtime.bank, runtime.template.eos_token_ids)
    request = WriteRequest("The CEO of TechCorp is Dr. Sarah Chen.")
    made = engine.execute(lambda: runtime.consolidator.consolidate(request))
    engine.execute(lambda: runtime.bank.publish(1, {"fact": made.weights}), urgent=True)
    ids = tuple(runtime.template.encode("Who leads TechCorp?"))
    answers = [
        runtime.template.decode(heard(engine.submit(GenerationRequest(ids, weights_version=version))))
        for version in (1, 0)
    ]
    engine.close()
    assert "Sarah Chen" in answers[0]
    assert "Sarah Chen" not in answers[1]


def test_pages_fill_the_memory_that_is_free(model: NPTForCausalLM) -> None:
    runner = PagedRunner(model)
    assert runner.num_pages > 100
    free, total = torch.cuda.mem_get_info()
    assert 0.1 * total < free < 0.3 * total
