"""One picture: recall, locality and perplexity by number of facts, and folding's capacity."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import color_sequences
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from npt_core.evaluation.evaluate import Results
from npt_core.evaluation.journal import Key
from npt_core.evaluation.reports.summary import Row, capacities, rows

_AXES = (
    ("recall", "recall", 1.0),
    ("locality", "locality", 1.0),
    ("perplexity", "perplexity, %", 100.0),
)


def draw(results: Results, path: Path) -> None:
    """Writes a PNG; no display is needed."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    first, second = figure.subplots(2, 2)
    panels = [*first, *second]
    found = rows(results.records, lambda key: key.protocol in ("sequence", "at once"))
    names = [name for name in dict.fromkeys(_line(row.key) for row in found) if name is not None]
    for axes, (metric, label, factor) in zip(panels, _AXES, strict=False):
        for number, name in enumerate(names):
            points = [row for row in found if _line(row.key) == name]
            _curve(axes, points, metric, factor, name, color_sequences["tab20"][number % 20])
        axes.set(xlabel="facts", ylabel=label, xscale="log")
        axes.grid(alpha=0.3)
    panels[2].set_yscale("symlog", linthresh=1.0)
    if panels[0].has_data():
        panels[0].legend(fontsize=7)
    _capacity(panels[3], results)
    figure.savefig(path, dpi=110)


def _line(key: Key) -> str | None:
    """The curve that a row is a point of; the bank at once is the bank in sequence."""
    if key.method == "bank" and key.protocol == "at once":
        return None
    return key.method if key.order == "random" else f"{key.method}, {key.order}"


def _curve(axes: Any, points: Sequence[Row], metric: str, factor: float, name: str, color: Any) -> None:
    shown = sorted((p for p in points if metric in p.metrics), key=lambda p: p.key.facts)
    if not shown:
        return
    values = [factor * p.metrics[metric].mean for p in shown]
    halves = [factor * (p.metrics[metric].half or 0.0) for p in shown]
    style = "--" if "clustered" in name else "-"
    axes.errorbar(
        [p.key.facts for p in shown],
        values,
        halves,
        marker="o",
        ms=3,
        lw=1,
        ls=style,
        label=name,
        color=color,
    )


def _capacity(axes: Any, results: Results) -> None:
    found = capacities(results.records, results.config.capacity)
    axes.barh([c.detail for c in found], [c.facts for c in found], color="#557799")
    axes.tick_params(axis="y", labelsize=7)
    axes.invert_yaxis()
    axes.set(xlabel="facts folded within the limits")
