"""What one step of the engine costs on a CPU, by the compiled kernels and by torch's operations.

    python benchmarks/step_cost.py [--model models/reference] [--length 100] [--repeats 40]

Medians over `--repeats` of decoding one token for 1, 4, 16 and 64 sequences of `--length` tokens, and of
reading one prompt of that length, by turns.
"""

import argparse
import statistics
import time
from collections.abc import Sequence as Seq
from pathlib import Path

from npt_core.bench.steps import decoding, sequences
from npt_core.engine import Runner, Span
from npt_core.engine.kernels import library_for
from npt_core.engine.page_table import pages_for
from npt_core.loading import load_runtime

ROWS = (1, 4, 16, 64)


def medians_ms(runners: Seq[Runner], spans: Seq[Span], repeats: int) -> list[float]:
    """Of a step over `spans`, for each of `runners`, by turns."""
    found: list[list[float]] = [[] for _ in runners]
    for _ in range(repeats + 2):
        for runner, times in zip(runners, found, strict=True):
            begin = time.perf_counter()
            runner.run(spans)
            times.append(1000 * (time.perf_counter() - begin))
    return [statistics.median(times[2:]) for times in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/reference"))
    parser.add_argument("--length", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=40)
    given = parser.parse_args()
    model = load_runtime(given.model).model
    kernels = library_for(model)
    pages = max(ROWS) * pages_for(given.length + 1)
    runners = [Runner(model, pages), Runner(model, pages, native=False)]
    print(f"| step | {'torch' if kernels is None else kernels.unit} ms | torch ms |\n|---|---|---|")
    for count in ROWS:
        asked = sequences(count, given.length, model.config.vocab_size, runners[0].page_size)
        compiled, plain = medians_ms(runners, decoding(runners, asked), given.repeats)
        print(f"| {count} rows | {compiled:.1f} | {plain:.1f} |", flush=True)
    (prompt,) = sequences(1, given.length, model.config.vocab_size, runners[0].page_size)
    compiled, plain = medians_ms(runners, [Span(prompt, 0, given.length)], given.repeats)
    print(f"| a prompt of {given.length} | {compiled:.1f} | {plain:.1f} |")


if __name__ == "__main__":
    main()
