"""OpenTelemetry: a span for each request, with its generation or its write below.

Without the extra `otel`, or where no `OTEL_*` variable asks for it, spans are the API's empty ones.
Attributes name versions, counts and reasons, never prompts, answers, facts or keys; nor do spans record
exceptions, whose messages may quote them.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata

from opentelemetry import context as contexts
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue

VERSION = "npt.weights.version"
_EXPORTER = "OTEL_TRACES_EXPORTER"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class TracingUnavailable(Exception):
    """Traces are asked for and cannot be made."""


def start_tracing() -> Callable[[], None]:
    """Export spans from now on, if the environment asks for it as OpenTelemetry specifies; what sends the
    last ones.

    Raises:
        TracingUnavailable: the extra is not installed, or the exporter is not known.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return _nothing
    asked = os.environ.get(_EXPORTER) or ("otlp" if any(map(os.environ.get, _ENDPOINTS)) else "none")
    if asked == "none":
        return _nothing
    if asked != "otlp":
        raise TracingUnavailable(f"{_EXPORTER}: {asked} is not known, otlp and none are")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingUnavailable("traces need the extra `otel`: pip install 'npt[otel]'") from error
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win.
    own = {"service.name": os.environ.get("OTEL_SERVICE_NAME", "npt"), "service.version": _release()}
    provider = TracerProvider(resource=Resource.create(own))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider.shutdown


def _nothing() -> None:
    return


def _release() -> str:
    return metadata.version("npt")


def names() -> dict[str, str]:
    """The trace at hand and its span (the caller's, where none are made here), for log lines."""
    found = trace.get_current_span().get_span_context()
    if not found.is_valid:
        return {}
    return {"trace_id": trace.format_trace_id(found.trace_id), "span_id": trace.format_span_id(found.span_id)}


def tracer() -> trace.Tracer:
    """Of whatever provider there is."""
    return trace.get_tracer("npt")


def caller(headers: dict[str, str]) -> Context:
    """The trace that a request belongs to, by its `traceparent`."""
    return propagate.extract(headers)


@contextmanager
def span(
    name: str,
    kind: SpanKind = SpanKind.INTERNAL,
    context: Context | None = None,
    attributes: dict[str, AttributeValue] | None = None,
) -> Iterator[Span]:
    """Around the block; an error makes it one, by its type."""
    with tracer().start_as_current_span(
        name, context, kind, attributes, record_exception=False, set_status_on_exception=False
    ) as made:
        try:
            yield made
        except Exception as error:
            made.set_attribute("error.type", type(error).__qualname__)
            made.set_status(Status(StatusCode.ERROR))
            raise


def current() -> Context:
    """What spans belong below at this moment."""
    return contexts.get_current()


@contextmanager
def below(context: Context) -> Iterator[None]:
    """Spans of the block belong below those of `context`, which may be over and of another thread."""
    token = contexts.attach(context)
    try:
        yield
    finally:
        contexts.detach(token)


class Past:
    """Spans of what is over, between readings of `time.monotonic()`."""

    def __init__(self) -> None:
        self._epoch = time.time_ns() - time.monotonic_ns()

    def span(
        self,
        name: str,
        begin: float,
        end: float,
        context: Context,
        attributes: dict[str, AttributeValue] | None = None,
    ) -> Context:
        """One that was; the context for those below it."""
        start = self._epoch + int(begin * 1e9)
        made = tracer().start_span(name, context, attributes=attributes, start_time=start)
        made.end(self._epoch + int(end * 1e9))
        return trace.set_span_in_context(made, context)
