"""Results as JSON, as tables in Markdown, and as a picture."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
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
    sections = [
        _loads(results["loads"]),
        _overhead(results.get("overhead", ())),
        _roofline(results["roofline"]) if "roofline" in results else "",
        _writing(results.get("writing", ())),
        _rollbacks(results.get("rollback", ())),
        _columns(results.get("columns", ())),
        _startup(results["startup"]) if "startup" in results else "",
        _plain(results.get("conditions", {})),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown; nothing, where there are no rows."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join((f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines)) if lines else ""


def _loads(loads: Mapping[str, Any]) -> str:
    head = [
        "what",
        "streams",
        "tokens/s",
        "first token p50 / p95 / p99 ms",
        "between tokens p50 / p95 / p99 ms",
    ]
    rows = [[name, *_load(figures)] for name, measured in loads.items() for figures in measured]
    if any("errors" in figures for measured in loads.values() for figures in measured):
        head.append("errors")
        told = [figures.get("errors", {}) for measured in loads.values() for figures in measured]
        rows = [[*row, _reasons(errors)] for row, errors in zip(rows, told, strict=True)]
    return _table(head, rows)


def _load(figures: Mapping[str, Any]) -> list[object]:
    if "failed" in figures:
        reason = figures["failed"]
        told = reason if reason.startswith("not installed") else f"failed: {reason}"
        return [figures["streams"], told, "-", "-"]
    first, between = (
        " / ".join(_ms(figures[f"{which}_token_{q}_s"]) for q in ("p50", "p95", "p99"))
        for which in ("first", "inter")
    )
    return [figures["streams"], f"{figures['tokens_per_s']:.0f}", first, between]


def _overhead(found: Iterable[Mapping[str, Any]]) -> str:
    return _table(
        ["streams", "a step of NPT, ms", "of the plain Llama, ms", "ratio: median of turns", "least, most"],
        [
            (
                line["streams"],
                *(_ms(median(line[f"{who}_step_s"]), 2) for who in ("npt", "plain")),
                f"{line['ratio_p50']:.3f}",
                f"{line['ratio_least']:.3f}, {line['ratio_most']:.3f}",
            )
            for line in found
        ],
    )


def _roofline(found: Mapping[str, Any]) -> str:
    bandwidth = found["bandwidth"]
    told = (
        f"Roofline at {found['streams']} stream(s): memory gives {_giga(bandwidth['memory'])} GB/s, "
        f"an array of the model's size, which a cache may hold, {_giga(bandwidth['resident'])} GB/s."
    )
    head = ["what", "MB moved a token", "bound tokens/s (from cache)", "reached", "share of the bound"]
    return f"{told}\n\n{_table(head, map(_bound, found['lines']))}"


def _bound(line: Mapping[str, Any]) -> list[str]:
    reached, share = line["reached_tokens_per_s"], line["share"]
    bound, resident = line["bound_tokens_per_s"], line["bound_resident_tokens_per_s"]
    return [
        line["row"],
        f"{line['bytes_per_token'] / 1e6:.1f}",
        f"{bound:.0f} ({resident:.0f})",
        *(("-", "-") if reached is None else (f"{reached:.0f}", f"{share:.0%}")),
    ]


def _writing(found: Iterable[Mapping[str, Any]]) -> str:
    return _table(
        [
            "beside streams",
            "facts written",
            "refused",
            "a fact took p50, max s",
            "bank pause p50, max ms",
            "p99 between tokens, times that without: median of turns (least, most)",
        ],
        [
            (
                line["streams"],
                line["written"],
                _reasons(line["refused"]),
                f"{_seconds(line['write_p50_s'])}, {_seconds(line['write_max_s'])}",
                f"{_ms(line['publication_p50_s'], 2)}, {_ms(line['publication_max_s'], 2)}",
                _waits(line.get("waits")),
            )
            for line in found
        ],
    )


def _rollbacks(found: Iterable[Mapping[str, Any]]) -> str:
    return _table(
        [
            "beside streams",
            "facts taken back, of 1,000",
            "rollbacks",
            "in force after p50 / p99 / max ms",
            "told after p50, p99 ms",
            "bank pause p50, max ms",
        ],
        [
            (
                line["streams"],
                line["undone"],
                line["rollbacks"],
                " / ".join(_ms(line[f"effective_{q}_s"], 2) for q in ("p50", "p99", "max")),
                f"{_ms(line['answered_p50_s'], 2)}, {_ms(line['answered_p99_s'], 2)}",
                f"{_ms(line['pause_p50_s'], 2)}, {_ms(line['pause_max_s'], 2)}",
            )
            for line in found
        ],
    )


def _columns(found: Iterable[Mapping[str, Any]]) -> str:
    return _table(
        ["columns in each plastic layer", "tokens/s", "between tokens p50 ms", "slower than none"],
        [
            (
                line["columns_per_layer"],
                f"{line['tokens_per_s']:.0f}",
                _ms(line["inter_token_p50_s"]),
                f"{line['slower']:+.1%}",
            )
            for line in found
        ],
    )


def _startup(found: Mapping[str, Any]) -> str:
    return (
        f"Start-up of a fresh process: imports done after {found['imports_s']:.1f} s, the model loaded "
        f"after {found['loaded_s']:.1f} s, the first token after {found['first_token_s']:.1f} s. Peak "
        f"memory: {_mega(found['idle_peak_bytes'])} MB, and {_mega(found['peak_bytes'])} MB after "
        f"{found['streams']} streams at once{_gpu(found)}."
    )


def _gpu(found: Mapping[str, Any]) -> str:
    return f"; of the GPU {_mega(found['gpu_peak_bytes'])} MB" if "gpu_peak_bytes" in found else ""


def _plain(conditions: Mapping[str, Any]) -> str:
    return f"The plain Llama: {conditions['plain_llama']}." if "plain_llama" in conditions else ""


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} x {reason}" for reason, number in counts.items()) or "0"


def _waits(turns: Sequence[float] | None) -> str:
    return f"{median(turns):.2f} ({min(turns):.2f}, {max(turns):.2f})" if turns else "-"


def _ms(seconds: float | None, digits: int = 1) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.{digits}f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _giga(value: float) -> str:
    return f"{value / 1e9:.1f}"


def _mega(value: float) -> str:
    return f"{value / 1e6:.0f}"
