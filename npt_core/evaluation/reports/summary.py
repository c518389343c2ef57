"""Records of several seeds become rows with confidence intervals, and folding gets its capacity."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from npt_core.evaluation.config import CapacityConfig
from npt_core.evaluation.folding import within
from npt_core.evaluation.journal import Key, Record
from npt_core.evaluation.statistics import Interval, interval


@dataclass(frozen=True)
class Row:
    """One measurement over all seeds; `key.seed` means nothing here."""

    key: Key
    metrics: Mapping[str, Interval]


def rows(records: Sequence[Record], wanted: Callable[[Key], bool]) -> list[Row]:
    """The records whose key is `wanted`, one row for all seeds, in the order of measuring."""
    groups: dict[Key, list[Mapping[str, float]]] = {}
    for record in records:
        if wanted(record.key):
            groups.setdefault(_seedless(record.key), []).append(record.metrics)
    return [Row(key, _intervals(group)) for key, group in groups.items()]


def _seedless(key: Key) -> Key:
    return Key(key.method, key.protocol, key.order, key.facts, 0, key.detail)


def _intervals(group: Sequence[Mapping[str, float]]) -> dict[str, Interval]:
    names = dict.fromkeys(name for metrics in group for name in metrics)
    return {name: interval([m[name] for m in group if name in m]) for name in names}


@dataclass(frozen=True)
class Capacity:
    """How many facts one way of folding holds; `least` where no more were tried."""

    detail: str
    facts: int
    least: bool
    last: Row


def capacities(records: Sequence[Record], limits: CapacityConfig) -> list[Capacity]:
    """For each way of folding, the most facts up to which every fold was good enough."""
    ways: dict[str, list[Row]] = {}
    for row in rows(records, lambda key: key.protocol == "capacity"):
        ways.setdefault(row.key.detail, []).append(row)
    return [_capacity(detail, tried, limits) for detail, tried in ways.items()]


def _capacity(detail: str, tried: Sequence[Row], limits: CapacityConfig) -> Capacity:
    held, last = 0, tried[0]
    for row in sorted(tried, key=lambda r: r.key.facts):
        means = {name: found.mean for name, found in row.metrics.items()}
        last = row
        if not within(means, limits.min_recall, limits.max_perplexity):
            return Capacity(detail, held, False, last)
        held = row.key.facts
    return Capacity(detail, held, True, last)
