"""What the search for a column costs beside the products of its MLP, at the shapes of an 8B model.

    python benchmarks/match_cost.py [--d-model 4096] [--d-ffn 14336] [--repeats 5] [--dtype float32 ...]

Random weights and keys, one layer, on the CPU, float32 by the engine's kernels; medians over `--repeats`. A
call finds weights and keys as cold as the call before left them, as in a model with many layers. bfloat16
takes minutes where the processor does not multiply it.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from npt_core.bank import PlasticLayer, Whitening
from npt_core.bench.columns import synthetic
from npt_core.native import Panels, compiled

COUNTS = (1_000, 10_000, 100_000)
ROWS = (1, 16, 64)
WIDTHS = (64, 128)


def median_ms(call: Callable[[], object], repeats: int) -> float:
    """Median wall time of `call` in milliseconds, after one call that is not counted."""
    call()
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        found.append(1000 * (time.perf_counter() - begin))
    return statistics.median(found)


def full_layer(d_model: int, d_ffn: int, width: int, count: int) -> PlasticLayer:
    """A layer with `count` columns that never fire; their values take no room, nothing reads them."""
    whitening = Whitening(torch.zeros(d_ffn), torch.randn(d_ffn, width) / d_ffn**0.5)
    layer = PlasticLayer(1, d_ffn, whitening, torch.zeros(1))
    made = synthetic(count, width, 1)
    layer.columns = layer.columns.extended((made.keys, made.values, made.thresholds), 0, 1)
    layer.newest = 1
    return layer


def product(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    """By `matrix`, as the engine multiplies."""
    kernels = compiled() if matrix.dtype == torch.float32 else None
    return partial(torch.mm, mat2=matrix) if kernels is None else Panels.of(kernels, matrix).times


def mlp_times(d_model: int, d_ffn: int, dtype: torch.dtype, repeats: int) -> dict[int, float]:
    """By rows, the milliseconds of `gate_proj`, `up_proj` and `down_proj`."""
    gate_up = product(torch.randn(d_model, 2 * d_ffn).to(dtype))
    down = product(torch.randn(d_ffn, d_model).to(dtype))

    def mlp(x: Tensor, z: Tensor) -> None:
        gate_up(x)
        down(z)

    found = {}
    for rows in ROWS:
        x, z = torch.randn(rows, d_model).to(dtype), torch.randn(rows, d_ffn).to(dtype)
        found[rows] = median_ms(lambda x=x, z=z: mlp(x, z), repeats)
    return found


def table(d_model: int, d_ffn: int, repeats: int, dtypes: list[str]) -> Iterator[str]:
    """The lines of the table, as they are measured."""
    mlp = {name: mlp_times(d_model, d_ffn, getattr(torch, name), repeats) for name in dtypes}
    cells = [f"MLP {name} ms | of it" for name in dtypes]
    yield f"| rows | key width | columns | match ms | {' | '.join(cells)} |"
    yield "|---" * (4 + 2 * len(dtypes)) + "|"
    for width in WIDTHS:
        for count in COUNTS:
            layer = full_layer(d_model, d_ffn, width, count)
            for rows in ROWS:
                z, y = torch.randn(rows, 1, d_ffn), torch.zeros(rows, 1, 1)
                match = median_ms(lambda z=z, y=y, layer=layer: layer.down(z, y, 1), repeats)
                cells = [f"{times[rows]:.1f} | {match / times[rows]:.1%}" for times in mlp.values()]
                yield f"| {rows} | {width} | {count} | {match:.2f} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--d-model", type=int, default=4096)
    parser.add_argument("--d-ffn", type=int, default=14336)
    parser.add_argument("--repeats", type=int, default=5)
    both = ["float32", "bfloat16"]
    parser.add_argument("--dtype", nargs="+", choices=both, default=both)
    given = parser.parse_args()
    with torch.inference_mode():
        for line in table(given.d_model, given.d_ffn, given.repeats, given.dtype):
            print(line, flush=True)


if __name__ == "__main__":
    main()
