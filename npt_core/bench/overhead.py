"""What NPT layers cost: steps of the model and of a plain Llama of its sizes, by turns."""

import statistics
import time
from typing import Any

from npt_core.bench.load import NEW_TOKENS, PROMPT_TOKENS
from npt_core.bench.steps import decoding, sequences
from npt_core.engine import alone, page_size_for, runner_for
from npt_core.engine.forward import nothing
from npt_core.engine.page_table import pages_for
from npt_core.model import NPTForCausalLM

_TURNS = 5
_BURST = 10
"""Steps of one before it is the other's turn."""
_LENGTH = PROMPT_TOKENS + NEW_TOKENS // 2


def measure_overhead(
    model: NPTForCausalLM, plain: NPTForCausalLM, streams: int, seconds: float
) -> dict[str, Any]:
    """Seconds of a decoding step of both by turn, and the median of their ratios (above 1: NPT is slower);
    `model` reads its bank, `plain` has none.

    Bursts of steps alternate, so what else the machine does falls on both. Each turn has runners of its own:
    where the weights happen to lie in memory makes a difference, too.
    """
    turns = [alone(_turn, model, plain, streams, seconds / _TURNS) for _ in range(_TURNS)]
    ratios = [npt / llama for npt, llama in turns]
    return {
        "streams": streams,
        "npt_step_s": [npt for npt, _ in turns],
        "plain_step_s": [llama for _, llama in turns],
        "ratio_p50": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
    }


def _turn(model: NPTForCausalLM, plain: NPTForCausalLM, streams: int, seconds: float) -> tuple[float, float]:
    """Medians of both."""
    page = page_size_for(model)
    pages = streams * pages_for(_LENGTH + 1, page)
    runners = [runner_for(served, pages) for served in (model, plain)]
    spans = decoding(runners, sequences(streams, _LENGTH, model.config.vocab_size, page))
    found: list[list[float]] = [[], []]
    end = time.perf_counter() + seconds
    while not found[1] or time.perf_counter() < end:
        for runner, times in zip(runners, found, strict=True):
            begin = time.perf_counter()
            for _ in range(_BURST):
                runner.run(spans, nothing).argmax(-1).tolist()  # which waits for a GPU
            times.append((time.perf_counter() - begin) / _BURST)
    npt, llama = map(statistics.median, found)
    return npt, llama
