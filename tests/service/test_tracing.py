"""Spans of requests: what they are called, how they hang together, what they must not tell."""

import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anyio
import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from service import tracing
from service.host import Host
from tests.service.conftest import client_of
from tests.service.process import ServerProcess

TRACE, CALLER = "a" * 32, "b" * 16
PARENT = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
SECRET = "The launch code is 4711."
QUESTION = "What is the launch code?"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "tracer", lambda: provider.get_tracer("npt"))
    return exporter


def named(spans: Sequence[ReadableSpan], name: str) -> ReadableSpan:
    (found,) = (span for span in spans if span.name == name)
    return found


def below(spans: Sequence[ReadableSpan], parent: ReadableSpan) -> list[str]:
    """Names of the spans of a span, as they began."""
    inside = [span for span in spans if span.parent and span.parent.span_id == parent.context.span_id]
    assert all(parent.start_time <= span.start_time <= span.end_time <= parent.end_time for span in inside)
    return [span.name for span in sorted(inside, key=lambda span: span.start_time)]


@pytest.mark.parametrize("stream", [False, True])
async def test_answer_is_one_trace_that_names_its_version(
    host: Host, spans: InMemorySpanExporter, stream: bool
) -> None:
    async with client_of(host) as client:
        answer = await client.post("/generate", json={"prompt": QUESTION, "stream": stream}, headers=PARENT)
    assert answer.status_code == 200
    found = spans.get_finished_spans()
    assert {f"{span.context.trace_id:032x}" for span in found} == {TRACE}
    request = named(found, "POST /generate")
    assert request.kind is SpanKind.SERVER
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == CALLER
    told = request.attributes or {}
    assert (told["http.route"], told["http.response.status_code"], told[tracing.VERSION]) == (
        "/generate",
        200,
        0,
    )
    assert below(found, request) == ["generate"]
    generated = named(found, "generate")
    assert below(found, generated) == ["queue", "prefill", "decode"]
    counted = generated.attributes or {}
    assert counted["gen_ai.usage.input_tokens"] == len(QUESTION)
    assert counted["gen_ai.usage.output_tokens"] == len(" I don't know.")
    assert counted["gen_ai.response.finish_reasons"] == ("stop",)


async def test_write_is_one_trace_with_its_stages(host: Host, spans: InMemorySpanExporter) -> None:
    async with client_of(host) as client:
        assert (await client.post("/facts", json={"fact": SECRET}, headers=PARENT)).status_code == 201
    found = spans.get_finished_spans()
    assert below(found, named(found, "POST /facts")) == ["write"]
    write = named(found, "write")
    assert (write.attributes or {})[tracing.VERSION] == 1
    assert below(found, write) == ["lock", "consolidate", "blob", "ledger", "publish"]


async def test_write_that_is_answered_before_it_is_done_stays_in_the_trace(
    host: Host, spans: InMemorySpanExporter
) -> None:
    headers = PARENT | {"Prefer": "respond-async"}
    async with client_of(host) as client:
        accepted = await client.post("/facts", json={"fact": SECRET}, headers=headers)
        assert accepted.status_code == 202
        with anyio.fail_after(30):
            while (await client.get(accepted.headers["Location"])).json()["state"] != "succeeded":
                await anyio.sleep(0.01)
    found = spans.get_finished_spans()
    write, request = named(found, "write"), named(found, "POST /facts")
    assert f"{write.context.trace_id:032x}" == TRACE
    assert write.parent is not None
    assert write.parent.span_id == request.context.span_id


async def test_refused_request_has_a_route_and_a_failed_one_is_an_error(
    host: Host, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError(SECRET)

    async with client_of(host) as client:
        await client.post("/generate", json={"prompt": 7})
        await client.get("/nothing/here")
        await client.get("/readyz")
        monkeypatch.setattr(host.engine, "submit", fail)
        await client.post("/generate", json={"prompt": QUESTION})
    found = spans.get_finished_spans()
    told = [(span.name, (span.attributes or {})["http.response.status_code"]) for span in found]
    assert told == [("POST /generate", 422), ("GET unmatched", 404), ("POST /generate", 500)]
    assert [span.status.status_code is StatusCode.ERROR for span in found] == [False, False, True]


async def test_spans_tell_nothing_of_what_was_said(host: Host, spans: InMemorySpanExporter) -> None:
    async with client_of(host) as client:
        await client.post("/facts", json={"fact": SECRET})
        await client.post("/facts", json={"fact": "Nobody can read this"})
        assert "4711" in (await client.post("/generate", json={"prompt": QUESTION})).text
        await client.get("/facts:search", params={"q": QUESTION})
    text = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "4711" not in text
    assert "launch" not in text
    assert "exception.message" not in text


class Collector(ThreadingHTTPServer):
    """What an OpenTelemetry collector is to those who send it spans."""

    def __init__(self) -> None:
        self.received: list[tuple[str, ExportTraceServiceRequest]] = []
        super().__init__(("127.0.0.1", 0), _Received)


class _Received(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_server_sends_its_spans_before_it_ends(collector: Collector, tmp_path: Path) -> None:
    asked = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_address[1]}",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_BSP_SCHEDULE_DELAY": "3600000",
    }
    server = ServerProcess(["-m", "service.cli", "serve", "--data", str(tmp_path), "--port", "0"], asked)
    try:
        server.wait_ready()
        answer = httpx2.post(f"{server.url}/generate", json={"prompt": QUESTION}, headers=PARENT, timeout=60)
        assert answer.status_code == 200
        assert collector.received == []
        assert server.stop() == 0
    finally:
        server.kill()
    assert f'"trace_id": "{TRACE}"' in server.log
    ((path, request),) = collector.received
    (resource,) = request.resource_spans
    assert path == "/v1/traces"
    assert any(
        each.key == "service.name" and each.value.string_value == "npt"
        for each in resource.resource.attributes
    )
    sent = [span for scope in resource.scope_spans for span in scope.spans]
    assert {span.name for span in sent} == {"POST /generate", "generate", "queue", "prefill", "decode"}
    assert {span.trace_id.hex() for span in sent} == {TRACE}


@pytest.mark.parametrize(
    ("environment", "missing", "reason"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, None, "zipkin is not known"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "opentelemetry.sdk.trace", "npt[otel]"),
    ],
)
def test_traces_that_cannot_be_made_are_refused(
    environment: dict[str, str], missing: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if missing is not None:
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(tracing.TracingUnavailable, match=reason.replace("[", r"\[")):
        tracing.start_tracing()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_TRACES_EXPORTER": "zipkin", "OTEL_SDK_DISABLED": "true"},
    ],
)
def test_no_traces_unless_asked(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert tracing.start_tracing() is tracing._nothing
