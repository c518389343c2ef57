"""What a full bank costs: the same load over columns that never fire, beside an empty bank."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from npt_core.bank import Bank, Columns, FactWeights, Whitening
from npt_core.bench.figures import Figures
from npt_core.bench.load import answered, prompts, running
from npt_core.engine import Engine, alone
from npt_core.loading import Runtime


def measure_columns(
    runtime: Runtime, counts: Sequence[int], streams: int, seconds: float
) -> list[dict[str, Any]]:
    """Figures with each number of columns in every plastic layer, at their real widths.

    The banks take turns, round by round on one engine, for `seconds` each, so that whatever else this
    machine does meets all of them; `slower` is the median, over the turns, of the time for a token
    against that of the first of `counts` in the same turn, less one.
    """
    model: Any = runtime.model
    whitening = runtime.consolidator.calibration.whitening
    banks = [alone(_bank, model, whitening, count) for count in counts]
    try:
        with running(model, banks[0], streams) as engine:
            turns = _turns(engine, banks, streams, model.config.vocab_size, seconds * len(banks))
    finally:
        runtime.bank.attach()
    return [
        {
            "columns_per_layer": count,
            "plastic_layers": len(whitening),
            "streams": streams,
            **_summary(turns, i),
        }
        for i, count in enumerate(counts)
    ]


def synthetic(count: int, width: int, d_model: int) -> Columns:
    """Columns with random keys that no key reaches."""
    return Columns(
        F.normalize(torch.randn(count, width), dim=-1),
        torch.zeros(count, d_model),
        torch.full((count,), 2.0),
        torch.zeros(count, 1),
    )


def _bank(model: Any, whitening: Mapping[int, Whitening], count: int) -> Bank:
    bank = Bank(model, whitening)
    width, d_model = next(iter(whitening.values())).projection.shape[1], model.config.hidden_size
    columns = {index: synthetic(count, width, d_model) for index in whitening if count}
    bank.publish(1, {"synthetic": FactWeights(columns)})
    return bank


def _turns(
    engine: Engine, banks: Sequence[Bank], streams: int, vocabulary: int, seconds: float
) -> list[list[Figures]]:
    """Turns of one round with each bank, for at least `seconds`, after one that is not counted."""
    turns: list[list[Figures]] = []
    begin = time.perf_counter()
    while len(turns) < 2 or time.perf_counter() - begin < seconds:
        turn: list[Figures] = []
        for bank in banks:
            bank.attach()
            asked = prompts(streams, vocabulary, seed=len(turns) * len(banks) + len(turn))
            start = time.perf_counter()
            answers = answered(engine, asked)
            turn.append(Figures.of(streams, answers, time.perf_counter() - start))
        turns.append(turn)
    return turns[1:]


def _summary(turns: Sequence[Sequence[Figures]], index: int) -> dict[str, float]:
    found = [turn[index] for turn in turns]
    gaps = [f.inter_token_p50_s for f in found if f.inter_token_p50_s is not None]
    return {
        "tokens_per_s": statistics.median(f.tokens_per_s for f in found),
        "inter_token_p50_s": statistics.median(gaps),
        "slower": statistics.median(t[0].tokens_per_s / t[index].tokens_per_s for t in turns) - 1,
    }
