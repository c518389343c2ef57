"""What a full bank costs: the same load over columns that never fire."""

from dataclasses import asdict
from typing import Any

import torch
from torch.nn import functional as F

from npt_core.bank import Bank, Columns, FactWeights
from npt_core.bench.load import measure
from npt_core.engine import Engine, Runner
from npt_core.loading import Runtime


def measure_columns(runtime: Runtime, count: int, streams: int, seconds: float) -> dict[str, Any]:
    """Figures with `count` columns in every plastic layer, at their real widths."""
    model = runtime.model
    whitening = runtime.consolidator.calibration.whitening
    bank = Bank(model, whitening).attach()
    if count:
        layers = {
            index: Columns(
                F.normalize(torch.randn(count, space.projection.shape[1]), dim=-1),
                torch.zeros(count, model.config.hidden_size),
                torch.full((count,), 2.0),
                torch.zeros(count, 1),
            )
            for index, space in whitening.items()
        }
        bank.publish(1, {"synthetic": FactWeights(layers)})
    engine = Engine(Runner(model), bank, ())
    try:
        figures = measure(engine, streams, model.config.vocab_size, seconds)
    finally:
        engine.close()
        runtime.bank.attach()
    return {"columns_per_layer": count, "plastic_layers": len(whitening), **asdict(figures)}
