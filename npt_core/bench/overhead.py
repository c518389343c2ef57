"""What NPT layers cost: the model and a plain Llama of its sizes in the same engine, by turns."""

import statistics
from typing import Any

from npt_core.bank import Bank
from npt_core.bench.load import measure, running
from npt_core.model import NPTForCausalLM

_TURNS = 5


def measure_overhead(
    model: NPTForCausalLM, bank: Bank, plain: NPTForCausalLM, streams: int, seconds: float
) -> dict[str, Any]:
    """Tokens a second of both by turn, and the median of their ratios (below 1: NPT is slower).

    Neighbours in time share what else the machine does, so that cancels in their ratio; who comes
    first changes with every turn. Without drafts, whose luck depends on what a model says.
    """
    contenders = {"npt": (model, bank), "plain": (plain, Bank(plain, {}))}
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(_TURNS):
        names = list(contenders) if turn % 2 else list(contenders)[::-1]
        for name in names:
            with running(*contenders[name], streams, drafts=False) as engine:
                figures = measure(engine, streams, model.config.vocab_size, seconds / _TURNS)
            found[name].append(figures.tokens_per_s)
    ratios = [npt / llama for npt, llama in zip(found["npt"], found["plain"], strict=True)]
    return {
        "streams": streams,
        "npt_tokens_per_s": found["npt"],
        "plain_tokens_per_s": found["plain"],
        "ratio_p50": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
    }
