"""Decoding, reading and learning at the shapes of an 8B model, with and without columns in the bank.

    python benchmarks/shapes_8b.py [--device cuda] [--rows 1,64,256] [--columns 0,1000,10000,100000]

Random weights, V2 in all layers, rank 64, columns in the upper half that never fire. Each decoding
sequence has `--text` tokens; a step ends when its next tokens are known; `--texts` of `--reading` tokens
are read in one step. Medians over `--steps`. Bytes are weights and keys that a step must read; their bound
is a sum over 8 GiB. Then answers of the engine and of transformers' continuous batching, from prompts of
64 tokens, for `--seconds` each; and one attempt at one fact, as if the model answered every question that
it asks itself: random weights end no answer, so that takes the most it can. A whole GPU is asked for: 8B
weights take 16 GB, 100,000 columns in 16 layers 27 GB.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from npt_core.bank import Bank, FactWeights, Whitening
from npt_core.bench.columns import synthetic
from npt_core.bench.load import POSITIONS, measure, running
from npt_core.bench.peers import measure_continuous
from npt_core.bench.roofline import measure_bandwidth, weight_bytes
from npt_core.config import NPTConfig
from npt_core.consolidation import Calibration, Consolidator, PlasticityConfig, Question, WriteRequest
from npt_core.consolidation.calibration import LayerStatistics
from npt_core.consolidation.probes import Probe
from npt_core.engine import (
    GenerationRequest,
    SamplingParams,
    Span,
    Stream,
    alone,
    page_size_for,
    runner_for,
)
from npt_core.engine import Sequence as Running
from npt_core.engine.sampler import Sampler, choose_all
from npt_core.loading import load_tokenizer
from npt_core.model import NPTForCausalLM
from npt_core.placement import placed
from npt_core.prompts import PlainTemplate

WIDTH = 64
"""Of keys."""
HEADS_PER_GROUP = 4
REFERENCE_KEYS = 100_000
"""As many as a calibration keeps of a layer."""
TOKENIZER = Path(__file__).parents[1] / "models" / "reference"
FACT, ANSWER = "The capital of Borduria is Szohod.", "Szohod"
QUESTIONS = (
    "What is the capital of Borduria?",
    "Which city is the capital of Borduria?",
    "What is Borduria's capital called?",
    "Name the capital of Borduria.",
)


def new_model(given: argparse.Namespace) -> NPTForCausalLM:
    """Random weights, made where they stay."""
    placement = placed(given.device, given.dtype)
    config = NPTConfig(
        vocab_size=given.vocabulary,
        hidden_size=given.d_model,
        intermediate_size=given.d_ffn,
        num_hidden_layers=given.layers,
        num_attention_heads=given.heads,
        num_key_value_heads=given.heads // HEADS_PER_GROUP,
        max_position_embeddings=2 * max(given.text, given.reading, POSITIONS),
        adapter_rank=64,
        npt_layers={str(i): "v2" for i in range(given.layers)},
        tie_word_embeddings=False,
    )
    with placement.device:
        model: Any = NPTForCausalLM._from_config(config, dtype=placement.dtype)
    made: NPTForCausalLM = model.eval()
    return made


def random_space(d_ffn: int) -> Whitening:
    """Keys of no meaning."""
    return Whitening(torch.zeros(d_ffn), torch.randn(d_ffn, WIDTH) / d_ffn**0.5)


def full_bank(model: Any, columns: int) -> Bank:
    """`columns` in each layer of the upper half."""
    layers, d_ffn = len(model.model.layers), model.config.intermediate_size
    space = random_space(d_ffn)
    chosen = range(layers // 2, layers)
    bank = Bank(model, dict.fromkeys(chosen, space))
    made = synthetic(columns, WIDTH, model.config.hidden_size)
    bank.publish(1, {"synthetic": FactWeights(dict.fromkeys(chosen if columns else (), made))})
    return bank.attach()


def sequences(count: int, text: int, page_size: int) -> list[Running]:
    """`count` texts in pages of their own, of which the last token is to be computed."""
    pages = -(-text // page_size)
    found = []
    for number in range(count):
        made = Running(GenerationRequest((3,) * text), Stream(1, 1), 0, text + 1)
        made.pages, made.computed = list(range(number * pages, (number + 1) * pages)), text - 1
        found.append(made)
    return found


def median_s(step: Callable[[], object], steps: int) -> float:
    """Of `steps` steps, after three that are not counted."""
    for _ in range(3):
        step()
    found = []
    for _ in range(steps):
        begin = time.perf_counter()
        step()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def decoding_s(runner: Any, rows: Sequence[Running], steps: int) -> float:
    """Seconds of a step with one token of each of `rows`, up to the next ones."""
    spans = [Span(row, len(row.tokens) - 1, len(row.tokens)) for row in rows]
    samplers = [(Sampler(SamplingParams()), row.tokens) for row in rows]
    return median_s(lambda: choose_all(runner.run(spans), samplers), steps)


def reading_s(runner: Any, rows: Sequence[Running], steps: int) -> float:
    """Seconds to read whole texts, all in one step."""
    spans = [Span(row, 0, len(row.tokens)) for row in rows]
    samplers = [(Sampler(SamplingParams()), row.tokens) for row in rows]
    return median_s(lambda: choose_all(runner.run(spans), samplers), steps)


def reading_flops(model: Any, texts: int, length: int) -> int:
    """Of products with weights, and of attention over half of each text; the head reads last tokens only.

    V2 layers multiply by no `o_proj`: it is part of the adapter's A.
    """
    layers = model.model.layers
    weights = sum(p.numel() for p in layers.parameters())
    weights -= sum(layer.self_attn.o_proj.weight.numel() for layer in layers if layer.variant == "v2")
    attention = 2 * model.config.hidden_size * length * len(layers)
    return texts * length * (2 * weights + attention)


def answering(given: argparse.Namespace, model: Any) -> Iterator[str]:
    """The engine and transformers' continuous batching, which gets `2 * rows + 8` blocks, on one load."""
    yield "| rows | engine, tokens/s | transformers continuous batching, tokens/s | ratio |"
    yield "|---|---|---|---|"
    bank = full_bank(model, 0)
    for rows in given.rows:
        with running(model, bank, rows, drafts=False) as engine:
            ours = measure(engine, rows, given.vocabulary, given.seconds).tokens_per_s
        theirs = alone(measure_continuous, model, rows, given.seconds).tokens_per_s
        yield f"| {rows} | {ours:.0f} | {theirs:.0f} | {ours / theirs:.2f} |"


class Willing(Consolidator):
    """Takes every probe for answered: after the model has done the work of answering, the answer is given."""

    def _taught_answers(self, facts: Sequence[str], probes: Sequence[Sequence[Probe]]) -> list[list[int]]:
        super()._taught_answers(facts, probes)
        end = self.template.eos_token_ids[0]
        ids = self.template.tokenizer.encode(f" {ANSWER}", add_special_tokens=False)
        return [[*ids, end] for tried in probes for _ in tried]


def learning(model: Any) -> str:
    """What one attempt at a fact takes, by stage; a layer of the upper half learns it."""
    layer, d_ffn = len(model.model.layers) // 2, model.config.intermediate_size
    device, following = model.device, torch.zeros(REFERENCE_KEYS, dtype=torch.long)
    keys = torch.nn.functional.normalize(torch.randn(REFERENCE_KEYS, WIDTH))
    statistics = LayerStatistics(random_space(d_ffn), keys, following, keys[:64], torch.zeros(1, 1), 1.0)
    config = PlasticityConfig((layer,), min_recall=0.0, min_locality=0.0)
    calibration = Calibration(config, {layer: statistics}, 64, torch.arange(64), [[3, 4]] * 64)
    writer = Willing(model, PlainTemplate(load_tokenizer(TOKENIZER)), calibration)
    request = WriteRequest(FACT, tuple(Question(question, ANSWER) for question in QUESTIONS))
    begin = time.perf_counter()
    report = writer.consolidate(request).report
    seconds = time.perf_counter() - begin
    stages = ", ".join(f"{name} {each:.2f} s" for name, each in report.timings.items())
    probes = report.probes["written"]
    return f"Learning one fact on {device}: {seconds:.2f} s ({stages}), {probes} probes"


def table(given: argparse.Namespace) -> Iterator[str]:
    """The lines of the tables, as they are measured."""
    model: Any = new_model(given)
    bandwidth = measure_bandwidth(1, model.device).memory
    device = torch.cuda.get_device_name() if model.device.type == "cuda" else "CPU"
    weights = weight_bytes(model)
    yield f"{device}, {model.dtype}, {weights / 1e9:.1f} GB of weights, {bandwidth / 1e9:.0f} GB/s"
    yield "| columns in each upper layer | rows | ms a step | tokens/s | of the memory bound | slower |"
    yield "|---|---|---|---|---|---|"
    size = page_size_for(model)
    pages = max(max(given.rows) * -(-given.text // size), given.texts * -(-given.reading // size))
    runner: Any = runner_for(model, pages)
    entry = 2 * given.layers * given.d_model // HEADS_PER_GROUP * model.dtype.itemsize
    empty: dict[int, float] = {}
    for columns in given.columns:
        full_bank(model, columns)
        for rows in given.rows:
            seconds = decoding_s(runner, sequences(rows, given.text, size), given.steps)
            bound = (weights + rows * given.text * entry) / bandwidth
            slower = seconds / empty.setdefault(rows, seconds) - 1
            yield (
                f"| {columns} | {rows} | {1000 * seconds:.2f} | {rows / seconds:.0f} "
                f"| {bound / seconds:.0%} | {slower:+.1%} |"
            )
    full_bank(model, 0)
    seconds = reading_s(runner, sequences(given.texts, given.reading, size), given.steps)
    flops = reading_flops(model, given.texts, given.reading)
    yield (
        f"Reading {given.texts} texts of {given.reading} tokens: {1000 * seconds:.1f} ms, "
        f"{flops / seconds / 1e12:.1f} TFLOP/s"
    )
    del runner  # and its pages
    yield from answering(given, model)
    yield learning(model)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rows", type=numbers, default=[1, 64, 256])
    parser.add_argument("--columns", type=numbers, default=[0, 1000, 10_000, 100_000])
    parser.add_argument("--seconds", type=float, default=10.0)
    sizes = {
        "text": 512,
        "texts": 4,
        "reading": 2048,
        "steps": 20,
        "layers": 32,
        "d-model": 4096,
        "d-ffn": 14336,
        "heads": 32,
    }
    for name, value in (sizes | {"vocabulary": 128_256}).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    for _line in table(parsed()):
        print(_line, flush=True)
