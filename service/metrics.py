"""What is counted and timed, by name; each application has a registry of its own."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

# Buckets fit the quantity. A token takes milliseconds, a request seconds, a write in between.
REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
FIRST_TOKEN_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)
QUEUE_S = (0.001, 0.005, 0.025, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60)
STAGE_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
RATIO = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
DRIFT = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)


class Metrics:
    """The metrics of one application."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.request_duration = Histogram(
            "npt_request_duration_seconds",
            "Wall time of an HTTP request, to the end of its answer.",
            ("method", "route", "status"),
            buckets=REQUEST_S,
            registry=registry,
        )
        self.first_token = Histogram(
            "npt_time_to_first_token_seconds",
            "From admission to the first token.",
            buckets=FIRST_TOKEN_S,
            registry=registry,
        )
        self.inter_token = Histogram(
            "npt_inter_token_latency_seconds",
            "Between two tokens of one sequence.",
            buckets=TOKEN_S,
            registry=registry,
        )
        self.queue_duration = Histogram(
            "npt_queue_duration_seconds",
            "From admission to the start of decoding.",
            buckets=QUEUE_S,
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "npt_prompt_tokens_total", "Prompt tokens admitted.", registry=registry
        )
        self.generation_tokens = Counter(
            "npt_generation_tokens_total", "Tokens generated.", registry=registry
        )
        self.rejections = Counter(
            "npt_admission_rejections_total",
            "Requests that were refused before any work.",
            ("reason",),
            registry=registry,
        )
        self.facts = Counter(
            "npt_facts_total",
            "Fact writes, by outcome.",
            ("result",),
            registry=registry,
        )
        self.fact_write = Histogram(
            "npt_fact_write_duration_seconds",
            "Wall time of the stages of a fact write.",
            ("stage",),
            buckets=STAGE_S,
            registry=registry,
        )
        self.lock_wait = Histogram(
            "npt_write_lock_wait_seconds",
            "Wait for the write lock.",
            buckets=QUEUE_S,
            registry=registry,
        )
        self.fact_recall = Histogram(
            "npt_fact_recall_ratio",
            "Recall of published facts on held-out probes.",
            buckets=RATIO,
            registry=registry,
        )
        self.drift = Histogram(
            "npt_weight_drift_ratio",
            "Drift of published facts, as their report has it.",
            buckets=DRIFT,
            registry=registry,
        )

    def watch(self, gauges: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        """Gauges by name: their help text, and where their value is read when scraped."""
        for name, (text, read) in gauges.items():
            Gauge(name, text, registry=self.registry).set_function(read)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)
