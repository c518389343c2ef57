"""What is counted and timed, by name; each application has a registry of its own."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

# Buckets fit the quantity. A token takes milliseconds, a request seconds, a write in between.
REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
FIRST_TOKEN_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)
QUEUE_S = (0.001, 0.005, 0.025, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60)
STAGE_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
RATIO = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
DRIFT = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)


Readings = Mapping[str, tuple[str, Callable[[], float]]]
"""Help text, and where the value is read when scraped, by name."""


class Metrics:
    """The metrics of one application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.started = time.time()
        self._measure_requests()
        self._measure_generation()
        self._measure_facts()

    def _measure_requests(self) -> None:
        self.request_duration = self._histogram(
            "npt_request_duration_seconds",
            "Wall time of an HTTP request, to the end of its answer.",
            REQUEST_S,
            ("method", "route", "status"),
        )
        self.rejections = self._counter(
            "npt_admission_rejections_total",
            "Requests that were refused before any work.",
            ("reason",),
        )

    def _measure_generation(self) -> None:
        self.queue_duration = self._histogram(
            "npt_queue_duration_seconds", "From admission to the start of decoding.", QUEUE_S
        )
        self.first_token = self._histogram(
            "npt_time_to_first_token_seconds", "From admission to the first token.", FIRST_TOKEN_S
        )
        self.inter_token = self._histogram(
            "npt_inter_token_latency_seconds", "Between two tokens of one sequence.", TOKEN_S
        )
        self.prompt_tokens = self._counter("npt_prompt_tokens_total", "Prompt tokens admitted.")
        self.generation_tokens = self._counter("npt_generation_tokens_total", "Tokens generated.")

    def _measure_facts(self) -> None:
        self.facts = self._counter("npt_facts_total", "Fact writes, by outcome.", ("result",))
        self.fact_write = self._histogram(
            "npt_fact_write_duration_seconds",
            "Wall time of the stages of a fact write.",
            STAGE_S,
            ("stage",),
        )
        self.lock_wait = self._histogram("npt_write_lock_wait_seconds", "Wait for the write lock.", QUEUE_S)
        self.fact_recall = self._histogram(
            "npt_fact_recall_ratio", "Recall of published facts on held-out probes.", RATIO
        )
        self.drift = self._histogram(
            "npt_weight_drift_ratio", "Drift of published facts, as their report has it.", DRIFT
        )

    def count(self, counters: Readings) -> None:
        """Counters that something else keeps."""
        self.registry.register(_KeptElsewhere(counters))

    def tell(self, name: str, text: str, labels: Callable[[], dict[str, str]]) -> None:
        """A gauge that is always 1, for what its labels say when it is scraped."""
        self.registry.register(_Told(name, text, labels))

    def watch(self, gauges: Readings) -> None:
        """Gauges that are read when scraped."""
        for name, (text, read) in gauges.items():
            Gauge(name, text, registry=self.registry).set_function(read)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)


class _Told(Collector):
    def __init__(self, name: str, text: str, labels: Callable[[], dict[str, str]]) -> None:
        self._name, self._text, self._labels = name, text, labels

    def collect(self) -> Iterator[GaugeMetricFamily]:
        labels = self._labels()
        family = GaugeMetricFamily(self._name, self._text, labels=list(labels))
        family.add_metric(list(labels.values()), 1)
        yield family


class _KeptElsewhere(Collector):
    def __init__(self, counters: Readings) -> None:
        self._counters = counters

    def collect(self) -> Iterator[CounterMetricFamily]:
        for name, (text, read) in self._counters.items():
            yield CounterMetricFamily(name, text, value=read())
