"""Results as a table in Markdown."""

from collections.abc import Mapping
from typing import Any


def table(results: Mapping[str, Any]) -> str:
    """The figures of `run_bench`, without its prose."""
    lines = [
        "| what | streams | tokens/s | first token p50 ms | between tokens p50 / p95 / p99 ms |",
        "|---|---|---|---|---|",
    ]
    for name, figures in results["loads"].items():
        lines += [_row(name, f) for f in figures]
    lines += [
        "",
        "| columns in each plastic layer | tokens/s | between tokens p50 ms | slower than none |",
        "|---|---|---|---|",
    ]
    for found in results["columns"]:
        lines.append(
            f"| {found['columns_per_layer']} | {found['tokens_per_s']:.0f} "
            f"| {_ms(found['inter_token_p50_s'])} | {found['slower']:+.1%} |"
        )
    return "\n".join(lines) + "\n"


def _row(name: str, figures: Mapping[str, Any]) -> str:
    if "failed" in figures:
        return f"| {name} | {figures['streams']} | failed: {figures['failed']} | | |"
    between = " / ".join(_ms(figures[f"inter_token_{q}_s"]) for q in ("p50", "p95", "p99"))
    first = _ms(figures["first_token_p50_s"])
    return f"| {name} | {figures['streams']} | {figures['tokens_per_s']:.0f} | {first} | {between} |"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f}"
