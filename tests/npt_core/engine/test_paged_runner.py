"""The runner of a GPU, on a CPU, against that of a CPU; see `eager`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from npt_core.bank import Bank, Columns, Factors, FactWeights, Whitening
from npt_core.engine import (
    Engine,
    EngineConfig,
    GenerationRequest,
    Runner,
    SamplingParams,
    Sequence,
    Span,
    Stream,
    UnsupportedModel,
)
from npt_core.engine.page_table import PAGE
from npt_core.engine.paged_attention import PAGE_SIZE, check_attention
from npt_core.engine.paged_runner import PagedRunner, pages_that_fit
from tests.npt_core.engine.eager import on_cpu
from tests.npt_core.engine.test_runner import MODELS, Base, Recording, heard, llama, plain, prompts

D, D_FFN, WIDTH = 32, 48, 8


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fact(seed: int, rows: int = 6, factors: bool = False) -> FactWeights:
    columns = {
        i: Columns(
            F.normalize(noise(seed + i, rows, WIDTH), dim=-1),
            2 * noise(seed + 10 + i, rows, D),
            torch.full((rows,), 0.3),
            noise(seed + 20 + i, rows, D_FFN),
        )
        for i in (1, 3)
    }
    one = Factors(noise(seed + 30, 2, D_FFN) / 4, noise(seed + 31, 2, D) / 4)
    two = Factors(noise(seed + 32, 1, D) / 4, noise(seed + 33, 1, D_FFN) / 4)
    return FactWeights(columns, {(0, "gate_proj"): one, (2, "down_proj"): two} if factors else {})


def bank_of(model: Any) -> Bank:
    whitening = {i: Whitening(noise(i, D_FFN) / 10, noise(40 + i, D_FFN, WIDTH)) for i in (1, 3)}
    return Bank(model, whitening).attach()


def taught(model: Any) -> Bank:
    """Versions 0 to 5: columns, factors, a retraction, a fold, the way back."""
    bank = bank_of(model)
    bank.publish(1, {"a": fact(100)})
    bank.publish(2, {"b": fact(200, factors=True)})
    bank.publish(3, {"c": fact(300)}, ["a"])
    bank.publish(4, {}, ["c"], {0: noise(5, D, D_FFN).double() / 20, 3: noise(6, D, D_FFN).double() / 20})
    bank.publish(5, {"a": fact(100)}, deltas={})
    return bank


Logits = dict[tuple[tuple[int, ...], int], list[Tensor]]


def logits(runner: Any, bank: Any, versions: list[int | None], **config: Any) -> Logits:
    """Of every token of every answer, to prompts that end anywhere in a page, alone and in company."""
    recording = Recording(runner)
    engine = Engine(recording, bank, (), EngineConfig(**{"max_running": 8, "batch_tokens": 96, **config}))  # type: ignore[arg-type]
    new = SamplingParams(max_new_tokens=6)
    asked = [*prompts(7, 60), tuple(range(3, 60)) * 2, (5,)]
    requests = [
        GenerationRequest(prompt, new, version, (None, 1.0, 0.5)[i % 3])
        for i, prompt in enumerate(asked)
        for version in versions
    ]
    for stream in [engine.submit(request) for request in requests]:
        heard(stream)
    engine.close()
    return recording.logits


def assert_close(found: Logits, wanted: Logits) -> None:
    assert found.keys() == wanted.keys()
    for key, rows in wanted.items():
        torch.testing.assert_close(torch.stack(found[key]), torch.stack(rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts in chunks, some beside decoding sequences, and decoding by graphs of several sizes."""
    model = MODELS[name]()
    wanted = logits(Runner(model, 200), Base(), [None])
    runner, attention, captures = on_cpu(model, monkeypatch)
    assert_close(logits(runner, Base(), [None]), wanted)
    assert captures.made == len(runner.graphs.buckets) > 1
    assert captures.replays > captures.made
    assert max(attention.longest_queries) > PAGE


def test_versions_and_scales_mixed_in_a_batch_equal_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["mixed"]()
    bank = taught(model)
    versions: list[int | None] = [0, 1, 2, 3, 4, 5]
    wanted = logits(Runner(model, 400), bank, versions, max_running=32)
    runner, _, _ = on_cpu(model, monkeypatch, 80)
    assert_close(logits(runner, bank, versions, max_running=32), wanted)
    sums = {round(float(torch.stack(rows).double().sum()), 3) for rows in wanted.values()}
    assert len(sums) == 5 * 9  # Every version says something else; 5 is 2 again.


def test_rows_that_pad_a_batch_write_to_no_page_of_a_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["v2"]()
    model.model.embed_tokens.weight.data[0] = 1.0  # what rows of padding read; else their keys are zero
    runner, attention, _ = on_cpu(model, monkeypatch, 4)
    sequences = [decoding(page) for page in (2, 0, 1)]
    before = [[part.clone() for part in both] for both in runner.memory.pages]
    runner.run([Span(s, 8, 9) for s in sequences])
    assert runner.graphs.buckets == [4]
    for now, then in zip(runner.memory.pages, before, strict=True):
        for part, old in zip(now, then, strict=True):
            changed = (part != old).flatten(2).any(-1)
            assert changed[:3].nonzero().tolist() == [[page, 8] for page in range(3)]
            assert changed[3].any() == 0
            assert changed[4, :1].all()  # the scratch page
    assert attention.read == {0, 1, 2, 4}


def decoding(*pages: int, length: int = 9, version: int = 0) -> Sequence:
    """A sequence whose last token is to be computed."""
    sequence = Sequence(GenerationRequest((3,) * (length - 1)), Stream(1, version), 0, 1000)
    sequence.tokens.append(7)
    sequence.pages, sequence.computed = list(pages), length - 1
    return sequence


def test_graphs_go_by_powers_of_two_and_are_captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, _, captures = on_cpu(MODELS["v2"](), monkeypatch)
    for count in (3, 1, 4, 2, 3, 1, 5, 8):
        assert len(runner.run([Span(decoding(page), 8, 9) for page in range(count)])) == count
    assert runner.graphs.buckets == [1, 2, 4, 8]
    assert (captures.made, captures.replays) == (4, 8)


def test_rows_whose_graph_cannot_be_captured_are_computed_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every step of so many rows failed."""
    runner, _, captures = on_cpu(MODELS["v2"](), monkeypatch)
    three, one = [Span(decoding(page), 8, 9) for page in range(3)], [Span(decoding(5), 8, 9)]
    wanted = runner.run(three)
    attempts: list[int] = []

    def failing(step: Callable[[], Tensor]) -> Any:
        attempts.append(len(step()))
        if attempts[-1] == 4:
            raise torch.OutOfMemoryError
        return captures(step)

    monkeypatch.setattr(runner.graphs, "_capture", failing)
    runner.graphs.clear()
    for _ in range(2):
        assert torch.equal(runner.run(three), wanted)
        runner.run(one)
    assert attempts == [4, 1]
    assert runner.graphs.buckets == [1]


def test_logits_of_a_step_outlive_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, _, _ = on_cpu(MODELS["v2"](), monkeypatch)
    first = runner.run([Span(decoding(0), 8, 9)])
    kept = first.clone()
    other = runner.run([Span(decoding(1, length=30), 29, 30)])
    assert torch.equal(first, kept)
    assert not torch.equal(first, other)


def test_publications_are_read_without_a_new_capture_until_their_room_grows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = MODELS["v2"]()
    bank = bank_of(model)
    runner, _, captures = on_cpu(model, monkeypatch)
    cpu = Runner(model, 64)
    made = []

    def agree(version: int) -> None:
        spans = [Span(decoding(0, length=30, version=version), 0, 30)]
        runner.run(spans)
        cpu_spans = [Span(decoding(0, 1, length=30, version=version), 0, 30)]
        wanted = cpu.run(cpu_spans)
        found = runner.run([Span(spans[0].sequence, 29, 30)])
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        made.append(captures.made)

    agree(0)
    bank.publish(1, {"a": fact(100)})  # the first columns: a new capture
    agree(1)
    bank.publish(2, {"b": fact(200)})  # 12 of 16
    agree(2)
    bank.publish(3, {}, ["a"])
    agree(3)
    agree(2)  # a reader of an earlier version
    bank.publish(4, {"c": fact(300, 3)})  # 15 of 16
    agree(4)
    assert made == [1, 2, 2, 2, 2, 2]
    bank.publish(5, {"a": fact(100)})  # 21: the room doubles
    agree(5)
    bank.publish(6, {}, ["b"])
    agree(6)
    assert made[6:] == [3, 3]
    bank.publish(7, {}, deltas={1: noise(5, D, D_FFN).double() / 20})  # `down_proj` is made anew
    agree(7)
    agree(5)  # reads what it was before the fold, without a graph
    agree(7)
    assert made[8:] == [4, 4, 4]
    bank.retire(7)  # what is dead is dropped, the rest moves together
    agree(7)
    assert made[-1] == 5


def test_weights_changed_in_place_are_captured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["v2"]()
    runner, _, captures = on_cpu(model, monkeypatch)
    spans = [Span(decoding(0), 8, 9)]
    before = runner.run(spans)
    with torch.no_grad():
        model.model.layers[0].mlp.gate_proj.weight.mul_(-1)
    assert not torch.equal(runner.run(spans), before)
    assert captures.made == 2


def test_drafts_are_rows_of_their_own_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["v2"]()
    runner, attention, _ = on_cpu(model, monkeypatch)
    sequence = decoding(0, length=30)
    runner.run([Span(sequence, 0, 30)])
    together = runner.run([Span(sequence, 29, 30, draft=(11, 12))])
    assert runner.graphs.buckets == [4]
    assert attention.longest_queries[-1] == 1
    sequence.tokens += [11, 12]
    apart = [runner.run([Span(sequence, i, i + 1)]) for i in (29, 30, 31)]  # rows give logits only at the end
    torch.testing.assert_close(together[2:], apart[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["plain, biases", "v2"])
def test_half_precision_is_what_the_kernel_gets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that it asks of dtypes, shapes and strides is checked by the double."""
    model = MODELS[name]()
    wanted = logits(Runner(model, 200), Base(), [None])
    model = model.to(torch.bfloat16)
    runner, _, _ = on_cpu(model, monkeypatch, exact=False)
    found = logits(runner, Base(), [None])
    assert all(row.dtype == torch.float32 for rows in found.values() for row in rows)
    firsts = [(found[key][0], rows[0]) for key, rows in wanted.items()]
    cosines = torch.stack([F.cosine_similarity(a, b, dim=0) for a, b in firsts])
    assert cosines.median() > 0.99


def test_what_the_kernel_cannot_compute_is_refused() -> None:
    for dtype, width, capability, told in (
        (torch.float32, 64, (9, 0), "bfloat16"),
        (torch.bfloat16, 257, (9, 0), "heads of up to 256"),
        (torch.bfloat16, 36, (9, 0), "multiple of 8"),
        (torch.bfloat16, 64, (7, 5), "has 7.5"),
    ):
        with pytest.raises(UnsupportedModel, match=told):
            check_attention(dtype, width, capability)
    check_attention(torch.float16, 128, (8, 0))
    with pytest.raises(UnsupportedModel, match="float32"):
        PagedRunner(MODELS["v2"](), 4)


def test_pages_take_what_is_free_of_their_share() -> None:
    assert pages_that_fit(free=50, total=100, bytes_of_a_page=5) == 6
    with pytest.raises(UnsupportedModel, match="too little"):
        pages_that_fit(free=25, total=100, bytes_of_a_page=5)


def test_long_prompts_and_texts_cross_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    model = plain(max_position_embeddings=1024)
    long = tuple(3 + i * i % 55 for i in range(PAGE_SIZE + 250))
    params = SamplingParams(max_new_tokens=12)

    def answers(runner: Any) -> tuple[Logits, int]:
        recording = Recording(runner)
        engine = Engine(recording, Base(), (), EngineConfig(batch_tokens=200))  # type: ignore[arg-type]
        streams = [engine.submit(GenerationRequest(p, params)) for p in (long, long[:300], (*long[:256], 9))]
        for stream in streams:
            heard(stream)
        heard(engine.submit(GenerationRequest((*long[:270], 4), params)))
        hits = engine.prefix_cache.hit_tokens
        engine.close()
        return recording.logits, hits

    wanted, _ = answers(Runner(model, 200))
    runner, _, _ = on_cpu(model, monkeypatch, 12)
    found, hits = answers(runner)
    assert_close(found, wanted)
    assert hits == 3 * PAGE_SIZE  # one page of the first prompt, for all others


def test_a_model_without_a_bank_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["plain, tied"]()
    runner, _, _ = on_cpu(model, monkeypatch)
    assert runner.run([Span(decoding(0), 8, 9)]).shape == (1, llama().config.vocab_size)
