"""What a full bank costs: the same load over columns that never fire."""

from dataclasses import asdict
from typing import Any

import torch
from torch.nn import functional as F

from npt_core.bank import Bank, Columns, FactWeights
from npt_core.bench.alone import alone
from npt_core.bench.load import measure, running
from npt_core.loading import Runtime


def measure_columns(runtime: Runtime, count: int, streams: int, seconds: float) -> dict[str, Any]:
    """Figures with `count` columns in every plastic layer, at their real widths."""
    bank = alone(_full_bank, runtime, count)
    bank.attach()
    try:
        with running(runtime.model, bank, streams) as engine:
            figures = measure(engine, streams, runtime.model.config.vocab_size, seconds)
    finally:
        runtime.bank.attach()
    layers = len(runtime.consolidator.calibration.whitening)
    return {"columns_per_layer": count, "plastic_layers": layers, **asdict(figures)}


def _full_bank(runtime: Runtime, count: int) -> Bank:
    whitening = runtime.consolidator.calibration.whitening
    bank = Bank(runtime.model, whitening)
    if count:
        layers = {
            index: Columns(
                F.normalize(torch.randn(count, space.projection.shape[1]), dim=-1),
                torch.zeros(count, runtime.model.config.hidden_size),
                torch.full((count,), 2.0),
                torch.zeros(count, 1),
            )
            for index, space in whitening.items()
        }
        bank.publish(1, {"synthetic": FactWeights(layers)})
    return bank
