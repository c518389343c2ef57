"""The report as titled tables of ready text, for any renderer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from npt_core.evaluation.evaluate import Results
from npt_core.evaluation.journal import Key
from npt_core.evaluation.reports.summary import Capacity, Row, capacities, rows
from npt_core.evaluation.statistics import Interval


@dataclass(frozen=True)
class Section:
    """A table with what a reader must know to read it."""

    title: str
    text: str
    headers: Sequence[str]
    cells: Sequence[Sequence[str]]


Show = Callable[[Interval], str]
Shown = dict[str, tuple[str, Show]]


def rate(value: Interval) -> str:
    """A share in 0..1."""
    return f"{value.mean:.3f}{_half(value, 1, 3)}"


def change(value: Interval) -> str:
    """A relative change in per cent."""
    return f"{100 * value.mean:+.2f}%{_half(value, 100, 2)}"


def small(value: Interval) -> str:
    """Nats per token."""
    return f"{value.mean:.5f}"


def milliseconds(value: Interval) -> str:
    """Seconds, shown in milliseconds."""
    return f"{1000 * value.mean:,.0f}{_half(value, 1000, 0)}"


def number(value: Interval) -> str:
    """A count."""
    return f"{value.mean:,.0f}"


def exactly(value: Interval) -> str:
    """Whether something held, always."""
    return "yes" if value.mean == 1.0 else "no"


def _half(value: Interval, factor: float, digits: int) -> str:
    return "" if value.half is None else f" ±{factor * value.half:.{digits}f}"


RECALL: Shown = {"recall": ("recall", rate), "paraphrase": ("paraphrase", rate)}
LOCALITY: Shown = {
    "locality": ("locality", rate),
    "locality_relation": ("same relation", rate),
    "locality_subject": ("same subject", rate),
    "locality_unrelated": ("unrelated", rate),
    "unknown_kept": ('"I don\'t know." kept', rate),
}
DRIFT: Shown = {"kl": ("KL", small), "perplexity": ("perplexity", change)}
WIKI: Shown = {"kl_wiki": ("KL, wiki", small), "perplexity_wiki": ("perplexity, wiki", change)}
WORST: Shown = {"perplexity_worst": ("perplexity, worst fact", change)}
SEQUENCE: Shown = {"retention": ("first facts kept", rate), "immediate": ("at once after", rate)}
SECONDS: Shown = {"seconds": ("ms a fact", milliseconds)}
COST: Shown = {
    "refused": ("refused", rate),
    "unreadable": ("unreadable", rate),
    "seconds_median": ("ms, median", milliseconds),
    "seconds_p95": ("ms, p95", milliseconds),
    "study_median": ("study", milliseconds),
    "write_median": ("write", milliseconds),
    "verify_median": ("verify", milliseconds),
    "columns_median": ("columns", number),
    "bytes_median": ("bytes, median", number),
    "bytes_p95": ("bytes, p95", number),
}
EXACT: Shown = {
    "rollback_exact": ("rollback exact", exactly),
    "retract_exact": ("retract exact", exactly),
    "pinned_exact": ("pinned version exact", exactly),
    "order_exact": ("order exact", exactly),
    "facts_change_logits": ("facts change logits", exactly),
    "rollback_seconds": ("ms to roll back", milliseconds),
}
TOGETHER: Shown = {"same_as_sequence": ("same answers as in sequence", rate)}
FOLD: Shown = {"predicted_drift": ("predicted drift", rate)}


def sections(results: Results) -> list[Section]:
    """Every table that has rows."""
    made = [
        *_learning(results),
        *_both_tiers(results),
        _cost(results),
        _capacity(results),
        *_baselines(results),
    ]
    return [section for section in made if section.cells]


def _table(
    results: Results,
    wanted: Callable[[Key], bool],
    shown: Shown,
    title: str,
    text: str,
    named: Callable[[Key], Sequence[str]],
    names: Sequence[str],
) -> Section:
    found = rows(results.records, wanted)
    present = [name for name in shown if any(name in row.metrics for row in found)]
    cells = [[*named(row.key), *_cells(row, present, shown)] for row in found]
    return Section(title, text, [*names, *(shown[name][0] for name in present)], cells)


def _cells(row: Row, names: Sequence[str], shown: Shown) -> list[str]:
    return [shown[n][1](row.metrics[n]) if n in row.metrics else "-" for n in names]


def _method(key: Key) -> list[str]:
    return [key.method, key.order, f"{key.facts:,}"]


def _learning(results: Results) -> list[Section]:
    ceiling = _table(
        results,
        lambda key: key.method in ("before", "teacher"),
        RECALL,
        "Before, and the ceiling",
        "Before: the untouched model. Teacher: the same model with the fact in its context.",
        _method,
        ("model", "order", "facts"),
    )
    alone = _table(
        results,
        lambda key: key.method == "bank" and key.protocol == "one fact",
        RECALL | LOCALITY | DRIFT | WORST | WIKI,
        "One fact",
        "Each fact alone in the bank; means over the facts.",
        _method,
        ("tier", "order", "facts, each alone"),
    )
    return [ceiling, alone]


def _both_tiers(results: Results) -> list[Section]:
    names = ("tier", "order", "facts")
    bank = _table(
        results,
        lambda key: key.method == "bank" and key.protocol == "sequence",
        RECALL | SEQUENCE | LOCALITY | DRIFT | WIKI,
        "First tier: the bank, in sequence",
        "One version a fact; what n facts do is read at version n of one bank. "
        '"At once after": each fact asked at the version that brought it.',
        _method,
        names,
    )
    together = _table(
        results,
        lambda key: key.method == "bank" and key.protocol == "at once",
        RECALL | LOCALITY | TOGETHER,
        "First tier: the bank, at once",
        "All facts in one version, published in reverse order.",
        _method,
        names,
    )
    fold = _table(
        results,
        lambda key: key.method.startswith("fold") and key.protocol == "at once",
        RECALL | LOCALITY | DRIFT | WIKI | FOLD,
        "Second tier: folded weights",
        "The same facts written into down_proj by one joint solve, with nothing in the bank.",
        _method,
        names,
    )
    exact = _table(
        results,
        lambda key: key.protocol == "rollback",
        EXACT,
        "Taking facts back",
        "Exact means: logits (bank) or weights (fold) are bit-identical to those of a model that "
        "never had the facts.",
        _method,
        names,
    )
    return [bank, together, fold, exact]


def _cost(results: Results) -> Section:
    return _table(
        results,
        lambda key: key.protocol == "summary",
        COST,
        "What a fact costs",
        "Wall time of a whole write, the ladder's further attempts included, of the facts that were "
        "written one by one, with all threads: at least the first 50. "
        "Bytes are those of the stored blob. Refused facts count as not recalled everywhere.",
        lambda key: [key.order, f"{key.facts:,}"],
        ("order", "facts"),
    )


def _capacity(results: Results) -> Section:
    limits = results.config.capacity
    text = (
        f"How many facts fold before recall falls under {limits.min_recall} or perplexity rises by "
        f"more than {100 * limits.max_perplexity:g}%. Recall is over the facts folded, the first that were "
        "not refused. Rank is the number of columns kept per fact and layer; d_ffn is the number of hidden "
        f"units that the fold reads, of {results.about['d_ffn']}. With other layers the facts were written "
        "again for them, and fewer facts were tried."
    )
    headers = ("way of folding", "capacity", "last tried", "recall", "perplexity", "drift")
    cells = [_capacity_cells(c) for c in capacities(results.records, limits)]
    return Section("Capacity of folding", text, headers, cells)


def _capacity_cells(found: Capacity) -> list[str]:
    shown: Shown = {"recall": ("", rate), "perplexity": ("", change)}
    shown = {**shown, "predicted_drift": ("", rate)}
    held = f"at least {found.facts:,}" if found.least else f"{found.facts:,}"
    last = _cells(found.last, list(shown), shown)
    return [found.detail, held, f"{found.last.key.facts:,}", *last]


def _baselines(results: Results) -> list[Section]:
    return [
        _baseline(results, "one fact", "each fact alone, perplexity on part of the held-out text."),
        _baseline(results, "sequence", "MEMIT writes all at once, the others one after another."),
    ]


def _baseline(results: Results, protocol: str, text: str) -> Section:
    return _table(
        results,
        lambda key: key.protocol == protocol and _is_baseline(key),
        RECALL | LOCALITY | DRIFT | WIKI | SECONDS,
        f"Baselines, {protocol}",
        f"Told subject and object, which a write to the bank is not; {text}",
        lambda key: [key.method, f"{key.facts:,}"],
        ("method", "facts"),
    )


def _is_baseline(key: Key) -> bool:
    ours = ("before", "teacher", "bank", "write", "run", "fold")
    return key.method.partition(",")[0] not in ours
