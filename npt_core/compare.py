"""Llama, V1 and V2 on one input: what they answer, how large their states are, what they cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from npt_core.checkpoint import load_checkpoint
from npt_core.config import LayerSpec
from npt_core.convert import Source, convert_llama_to_npt
from npt_core.model import NPTForCausalLM

Model = LlamaForCausalLM | NPTForCausalLM


@dataclass(frozen=True)
class Candidate:
    """A likely next token."""

    token: int
    probability: float


@dataclass(frozen=True)
class ModelReport:
    """One model on the input of a comparison; differences are against the first model."""

    name: str
    variants: tuple[str, ...]
    parameters: int
    adapter_parameters: int
    next_tokens: tuple[Candidate, ...]
    layer_norms: tuple[float, ...]
    """Mean L2 norm over positions of each layer's output."""
    kl: float
    """Mean over positions of KL(first model || this model), nats."""
    max_logit_difference: float
    seconds: float
    """Median wall time of a forward pass."""


@dataclass(frozen=True)
class Comparison:
    tokens: int
    reports: tuple[ModelReport, ...]

    def table(self, decode: Callable[[int], str] | None = None) -> str:
        """A text table, one column per model; `decode` turns a token id into text."""
        first = self.reports[0]
        rows = [("", [report.name for report in self.reports])]
        rows += [(label, [show(r) for r in self.reports]) for label, show in _summary(first)]
        for rank in range(len(first.next_tokens)):
            shown = [_candidate(r.next_tokens[rank], decode) for r in self.reports]
            rows.append((f"next token {rank + 1}", shown))
        for layer in range(max(len(r.layer_norms) for r in self.reports)):
            rows.append((f"norm, layer {layer}", [_layer(r, layer) for r in self.reports]))
        return _aligned(rows)


def compare(models: Mapping[str, Model], input_ids: Tensor, *, top: int = 3, repeats: int = 3) -> Comparison:
    """Run every model on `input_ids` `[1, T]`; the first one is the reference.

    Raises:
        ValueError: no models, wrong input shape, `top` or `repeats` below 1, ids outside a
            vocabulary, or vocabularies of different size.
    """
    _check(models, input_ids, top, repeats)
    reports = []
    reference: Tensor | None = None
    for name, model in models.items():
        logits, norms, seconds = _measured(model, input_ids, repeats)
        reference = logits if reference is None else reference
        reports.append(_report(name, model, logits, reference, norms, seconds, top))
    return Comparison(input_ids.shape[1], tuple(reports))


def variants_of(source: Source, layers: LayerSpec = "all", seed: int = 0) -> dict[str, Model]:
    """The base in `source`, its V1 (exact, if it is a Llama) and the V2 that training starts from.

    Raises:
        ValueError, CheckpointError: as `convert_llama_to_npt`.
    """
    base = load_checkpoint(source) if isinstance(source, (str, Path)) else source
    v1 = convert_llama_to_npt(base, layers, "v1", seed=seed)
    return {"base": base, "v1": v1, "v2": convert_llama_to_npt(v1, layers, "v2", seed=seed)}


def _check(models: Mapping[str, Model], input_ids: Tensor, top: int, repeats: int) -> None:
    if not models:
        raise ValueError("no models to compare")
    if input_ids.dim() != 2 or input_ids.shape[0] != 1 or input_ids.shape[1] == 0:
        raise ValueError(f"input_ids must be [1, T] with T > 0, got {list(input_ids.shape)}")
    sizes = {model.config.vocab_size for model in models.values()}
    if len(sizes) > 1:
        raise ValueError(f"the models have vocabularies of different size: {sorted(sizes)}")
    (size,) = sizes
    if int(input_ids.min()) < 0 or int(input_ids.max()) >= size:
        raise ValueError(f"input_ids must lie in the vocabulary, 0 to {size - 1}")
    if not 1 <= top <= size or repeats < 1:
        raise ValueError(f"top must be 1 to {size} and repeats at least 1, got {top}, {repeats}")


@torch.no_grad()
def _measured(model: Model, input_ids: Tensor, repeats: int) -> tuple[Tensor, tuple[float, ...], float]:
    """Logits `[T, vocab]` in fp32 on the CPU, norms per layer, median seconds."""
    ids = input_ids.to(model.device)
    norms: list[float] = []
    # Hooks, because `output_hidden_states` puts the final norm on the last layer's output.
    hooks = [
        layer.register_forward_hook(lambda _module, _args, out: norms.append(_mean_norm(out)))
        for layer in model.model.layers
    ]
    try:
        logits = model(input_ids=ids, use_cache=False).logits[0].float().cpu()
    finally:
        for hook in hooks:
            hook.remove()
    return logits, tuple(norms), median(_timed(model, ids) for _ in range(repeats))


def _mean_norm(hidden: Tensor) -> float:
    return float(hidden.float().norm(dim=-1).mean())


def _timed(model: Model, ids: Tensor) -> float:
    start = time.perf_counter()
    logits = model(input_ids=ids, use_cache=False).logits
    # Reading a value waits for an accelerator to finish.
    logits[0, -1, 0].item()
    return time.perf_counter() - start


def _report(
    name: str,
    model: Model,
    logits: Tensor,
    reference: Tensor,
    norms: tuple[float, ...],
    seconds: float,
    top: int,
) -> ModelReport:
    likely = logits[-1].softmax(-1).topk(top)
    log_p, log_q = reference.log_softmax(-1), logits.log_softmax(-1)
    sizes = {key: weight.numel() for key, weight in model.named_parameters()}
    return ModelReport(
        name=name,
        variants=tuple(getattr(layer, "variant", "llama") for layer in model.model.layers),
        parameters=sum(sizes.values()),
        adapter_parameters=sum(n for key, n in sizes.items() if ".mlp.adapter." in key),
        next_tokens=tuple(map(Candidate, likely.indices.tolist(), likely.values.tolist())),
        layer_norms=norms,
        kl=(log_p.exp() * (log_p - log_q)).sum(-1).mean().item(),
        max_logit_difference=(logits - reference).abs().max().item(),
        seconds=seconds,
    )


def _summary(first: ModelReport) -> list[tuple[str, Callable[[ModelReport], str]]]:
    return [
        ("layers", lambda r: _counted(r.variants)),
        ("parameters", lambda r: f"{r.parameters:,}"),
        ("in adapters", lambda r: f"{r.adapter_parameters:,}"),
        (f"KL from {first.name}", lambda r: f"{r.kl:.3g}"),
        ("largest logit difference", lambda r: f"{r.max_logit_difference:.3g}"),
        ("time", lambda r: f"{r.seconds * 1e3:.1f} ms"),
    ]


def _counted(variants: tuple[str, ...]) -> str:
    return ", ".join(f"{variants.count(kind)} {kind}" for kind in dict.fromkeys(variants))


def _candidate(candidate: Candidate, decode: Callable[[int], str] | None) -> str:
    text: Any = candidate.token if decode is None else decode(candidate.token)
    return f"{text!r} {candidate.probability:.3f}"


def _layer(report: ModelReport, layer: int) -> str:
    return f"{report.layer_norms[layer]:.2f}" if layer < len(report.layer_norms) else "-"


def _aligned(rows: list[tuple[str, list[str]]]) -> str:
    cells = [[label, *values] for label, values in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for label, *values in cells:
        padded = (value.rjust(width) for value, width in zip(values, widths[1:], strict=True))
        lines.append("  ".join([label.ljust(widths[0]), *padded]))
    return "\n".join(lines)
