"""Results as JSON, as tables in Markdown, and as a picture."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from npt_core.bench.plot import draw


def save(results: Mapping[str, Any], out: Path) -> str:
    """Writes `bench.json`, `bench.md` and `bench.png` into `out`; returns the tables."""
    out.mkdir(parents=True, exist_ok=True)
    text = table(results)
    (out / "bench.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "bench.md").write_text(text)
    draw(results["loads"], out / "bench.png")
    return text


def table(results: Mapping[str, Any]) -> str:
    """The figures of a run; sections that were not measured are left out."""
    parts = [
        _loads(results["loads"]),
        _overhead(results.get("overhead", ())),
        _roofline(results.get("roofline")),
        _writing(results.get("writing", ())),
        _columns(results.get("columns", ())),
        _startup(results.get("startup")),
        _plain(results.get("conditions", {})),
    ]
    sections = ["\n".join(lines) for part in parts if (lines := list(part))]
    return "\n\n".join(sections) + "\n"


def _loads(loads: Mapping[str, Any]) -> Iterator[str]:
    errors = any("errors" in figures for rows in loads.values() for figures in rows)
    last = " errors |" if errors else ""
    yield (
        "| what | streams | tokens/s | first token p50 / p95 / p99 ms "
        f"| between tokens p50 / p95 / p99 ms |{last}"
    )
    yield "|---|---|---|---|---|" + ("---|" if errors else "")
    for name, rows in loads.items():
        for figures in rows:
            yield _row(name, figures) + (f" {_reasons(figures.get('errors', {}))} |" if errors else "")


def _row(name: str, figures: Mapping[str, Any]) -> str:
    if "failed" in figures:
        reason = figures["failed"]
        told = reason if reason.startswith("not installed") else f"failed: {reason}"
        return f"| {name} | {figures['streams']} | {told} | | |"
    first, between = (
        " / ".join(_ms(figures[f"{which}_token_{q}_s"]) for q in ("p50", "p95", "p99"))
        for which in ("first", "inter")
    )
    return f"| {name} | {figures['streams']} | {figures['tokens_per_s']:.0f} | {first} | {between} |"


def _overhead(found: Any) -> Iterator[str]:
    if found:
        yield "| streams | NPT over plain Llama, tokens/s: median of turns | least, most |"
        yield "|---|---|---|"
    for line in found:
        spread = f"{line['ratio_least']:.3f}, {line['ratio_most']:.3f}"
        yield f"| {line['streams']} | {line['ratio_p50']:.3f} | {spread} |"


def _roofline(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found is None:
        return
    bandwidth = found["bandwidth"]
    yield (
        f"Roofline at {found['streams']} stream(s): memory gives {_giga(bandwidth['memory'])} GB/s, "
        f"an array of the model's size, which a cache may hold, {_giga(bandwidth['resident'])} GB/s."
    )
    yield ""
    yield "| what | MB moved a token | bound tokens/s (from cache) | reached | share of the bound |"
    yield "|---|---|---|---|---|"
    for line in found["lines"]:
        reached, share = line["reached_tokens_per_s"], line["share"]
        told = "- | -" if reached is None else f"{reached:.0f} | {share:.0%}"
        yield (
            f"| {line['row']} | {line['bytes_per_token'] / 1e6:.1f} | {line['bound_tokens_per_s']:.0f} "
            f"({line['bound_resident_tokens_per_s']:.0f}) | {told} |"
        )


def _writing(found: Any) -> Iterator[str]:
    if found:
        yield "| beside streams | facts written | refused | a fact took p50, max s | bank pause p50, max ms |"
        yield "|---|---|---|---|---|"
    for line in found:
        took = f"{_seconds(line['write_p50_s'])}, {_seconds(line['write_max_s'])}"
        pause = f"{_ms(line['publication_p50_s'], 2)}, {_ms(line['publication_max_s'], 2)}"
        yield f"| {line['streams']} | {line['written']} | {_reasons(line['refused'])} | {took} | {pause} |"


def _columns(found: Any) -> Iterator[str]:
    if found:
        yield "| columns in each plastic layer | tokens/s | between tokens p50 ms | slower than none |"
        yield "|---|---|---|---|"
    for line in found:
        between = _ms(line["inter_token_p50_s"])
        yield (
            f"| {line['columns_per_layer']} | {line['tokens_per_s']:.0f} | {between} "
            f"| {line['slower']:+.1%} |"
        )


def _startup(found: Mapping[str, Any] | None) -> Iterator[str]:
    if found is not None:
        yield (
            f"Start-up of a fresh process: imports done after {found['imports_s']:.1f} s, the model loaded "
            f"after {found['loaded_s']:.1f} s, the first token after {found['first_token_s']:.1f} s. Peak "
            f"memory: {_mega(found['idle_peak_bytes'])} MB, and {_mega(found['peak_bytes'])} MB after "
            f"{found['streams']} streams at once."
        )


def _plain(conditions: Mapping[str, Any]) -> Iterator[str]:
    if "plain_llama" in conditions:
        yield f"The plain Llama: {conditions['plain_llama']}."


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} x {reason}" for reason, number in counts.items()) or "0"


def _ms(seconds: float | None, digits: int = 1) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.{digits}f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _giga(value: float) -> str:
    return f"{value / 1e9:.1f}"


def _mega(value: float) -> str:
    return f"{value / 1e6:.0f}"
