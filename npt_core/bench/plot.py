"""One picture: throughput by streams, and time between tokens with and without a writer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter

from npt_core.bench.rows import SERVER, SERVER_WRITING, WITHOUT, WRITING

_WRITERS = (WITHOUT, WRITING, SERVER, SERVER_WRITING)


def draw(loads: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Writes a PNG; no display is needed. Rows that failed have no points."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for name, rows in loads.items():
        _curve(left, rows, "tokens_per_s", 1, label=name)
    left.set(ylabel="tokens/s, all streams")
    for number, name in enumerate(name for name in _WRITERS if name in loads):
        color = f"C{number}"
        _curve(right, loads[name], "inter_token_p50_s", 1000, label=f"{name}, p50", color=color)
        _curve(right, loads[name], "inter_token_p99_s", 1000, label=f"{name}, p99", color=color, ls="--")
    right.set(ylabel="between tokens, ms")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.has_data():
            _scale(axes, loads)
            axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def _curve(axes: Any, rows: Sequence[Mapping[str, Any]], name: str, factor: float, **style: Any) -> None:
    points = [(row["streams"], factor * row[name]) for row in rows if row.get(name)]
    if points:
        axes.plot(*zip(*points, strict=True), marker="o", ms=3, lw=1, **style)


def _scale(axes: Any, loads: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    counts = sorted({row["streams"] for rows in loads.values() for row in rows})
    axes.set(xlabel="streams", xscale="log", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.minorticks_off()
    axes.set_xticks(counts, [str(count) for count in counts])
