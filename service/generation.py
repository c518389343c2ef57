"""From the engine's tokens to an answer in text, as it comes or all at once."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from anyio import to_thread
from opentelemetry.context import Context, get_current
from opentelemetry.util.types import AttributeValue

from npt_core.engine import (
    Event,
    FinishEvent,
    FinishReason,
    GenerationRequest,
    QueueFull,
    SamplingParams,
    Stream,
    TokenEvent,
)
from service.host import Host
from service.metrics import Metrics
from service.request_errors import VersionNotReached
from service.runtime import Template
from service.text.answer import AnswerText
from service.tracing import VERSION, Past


@dataclass(frozen=True, slots=True)
class Piece:
    """Text added to one sequence, and the token behind it (none for what was held back)."""

    index: int
    text: str
    token: TokenEvent | None


@dataclass(frozen=True, slots=True)
class End:
    """One sequence ended."""

    index: int
    reason: FinishReason


@dataclass(frozen=True, slots=True)
class Asked:
    """What any dialect asks for. `prompt` is text as the template wrote it, or token ids."""

    prompt: str | tuple[int, ...]
    sampling: SamplingParams
    stops: Sequence[str] = ()
    weights_version: int | None = None
    min_weights_version: int | None = None
    modulation_scale: float | None = None

    def at(self, version: int | None) -> "Asked":
        """The same, at a version."""
        return replace(self, weights_version=version)


@dataclass(frozen=True, slots=True)
class Running:
    """An admitted request: its stream, and what is needed to read it as text."""

    stream: Stream
    template: Template
    prompt_ids: tuple[int, ...]
    stops: Sequence[str]
    n: int
    metrics: Metrics
    trace: Context
    """What the request belongs to."""

    @property
    def weights_version(self) -> int:
        """The version that answers."""
        return self.stream.weights_version

    async def pieces(self) -> AsyncIterator[Piece | End]:
        """Pieces of text; one `End` for each sequence."""
        decode = self.template.decode
        texts = [AnswerText(decode, self.prompt_ids, self.stops) for _ in range(self.n)]
        async for event in _observed(self):
            text = texts[event.index]
            if text.has_stopped():
                continue  # Decoding ran a little ahead of the stop string.
            if isinstance(event, TokenEvent):
                self.metrics.generation_tokens.inc()
                yield Piece(event.index, text.push(event.token_id), event)
                if text.has_stopped():
                    self.stream.cancel(event.index)
                    yield End(event.index, FinishReason.STOP)
                continue
            rest = text.flush()
            if rest:
                yield Piece(event.index, rest, None)
            yield End(event.index, FinishReason.STOP if text.has_stopped() else event.reason)


async def admit(host: Host, asked: Asked) -> Running:
    """Submit a request to the engine, at the version it asks for.

    Raises:
        VersionNotReached: `min_weights_version`, or a version that another replica made, was not published
            here in time.
        LedgerUnavailable: whether there is such a version.
        EngineError: see `Engine.submit`.
    """
    least = await _least_version(host, asked)
    if least is not None and not await host.gate.wait_for(least, host.settings.version_wait_s):
        raise VersionNotReached(least, host.version)
    template = host.runtime.template
    # Off the event loop: a megabyte of text takes the tokenizer a while.
    prompt = asked.prompt
    if isinstance(prompt, str):
        prompt_ids = tuple(await to_thread.run_sync(template.encode, prompt, limiter=host.encoding))
    else:
        prompt_ids = prompt
    request = GenerationRequest(
        prompt_ids,
        asked.sampling,
        asked.weights_version,
        asked.modulation_scale,
        time.monotonic() + host.settings.request_timeout_s,
    )
    try:
        stream = host.engine.submit(request)
    except QueueFull:
        host.metrics.rejections.labels("queue_full").inc()
        raise
    host.metrics.prompt_tokens.inc(len(prompt_ids))
    return Running(stream, template, prompt_ids, asked.stops, asked.sampling.n, host.metrics, get_current())


async def _least_version(host: Host, asked: Asked) -> int | None:
    """What must be published before this can be answered. A pinned version is, but where another replica
    made it a moment ago.
    """
    pinned = asked.weights_version
    if pinned is None or pinned <= host.version or not host.ledger.shared:
        return asked.min_weights_version
    newest = await to_thread.run_sync(lambda: host.ledger.newest)
    return pinned if pinned <= newest else asked.min_weights_version


async def _observed(running: Running) -> AsyncIterator[Event]:
    """The stream's events, timed as they come."""
    stream, metrics = running.stream, running.metrics
    last: dict[int, float] = {}
    first, tokens, reasons = None, 0, list[str]()
    try:
        async for event in _events(stream, running.n):
            if isinstance(event, TokenEvent):
                moment = time.monotonic()
                tokens += 1
                if first is None:
                    first = moment
                    metrics.first_token.observe(moment - stream.times.submitted)
                    started = stream.times.started or moment
                    metrics.queue_duration.observe(started - stream.times.submitted)
                if event.index in last:
                    metrics.inter_token.observe(moment - last[event.index])
                last[event.index] = moment
            else:
                reasons.append(str(event.reason))
            yield event
    finally:
        _trace(running, first, tokens, reasons)


def _trace(running: Running, first: float | None, tokens: int, reasons: Sequence[str]) -> None:
    """The spans of an answer: waiting, reading the prompt, and then one token after the other."""
    times, now = running.stream.times, time.monotonic()
    attributes: dict[str, AttributeValue] = {
        VERSION: running.weights_version,
        "gen_ai.usage.input_tokens": len(running.prompt_ids),
        "gen_ai.usage.output_tokens": tokens,
        "gen_ai.response.finish_reasons": reasons,
    }
    past = Past()
    below = past.span("generate", times.submitted, now, running.trace, attributes)
    started = times.started or now
    past.span("queue", times.submitted, started, below)
    if times.started is not None:
        past.span("prefill", started, first or now, below)
    if first is not None:
        past.span("decode", first, now, below)


async def _events(stream: Stream, n: int) -> AsyncIterator[Event]:
    """The engine's threads hand over to this loop; ends with the last sequence."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Event] = asyncio.Queue()

    def hand_over(event: Event) -> None:
        # The loop may be gone: a client left while the server shut down.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(queue.put_nowait, event)

    stream.subscribe(hand_over)
    open_sequences = n
    while open_sequences:
        event = await queue.get()
        open_sequences -= isinstance(event, FinishEvent)
        yield event
