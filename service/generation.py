"""From the engine's tokens to an answer in text, as it comes or all at once."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from anyio import to_thread

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

    @property
    def weights_version(self) -> int:
        """The version that answers."""
        return self.stream.weights_version

    async def pieces(self) -> AsyncIterator[Piece | End]:
        """Pieces of text; one `End` for each sequence."""
        decode = self.template.decode
        texts = [AnswerText(decode, self.prompt_ids, self.stops) for _ in range(self.n)]
        async for event in _observed(self.stream, self.n, self.metrics):
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
        prompt_ids = tuple(await to_thread.run_sync(template.encode, prompt))
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
    return Running(stream, template, prompt_ids, asked.stops, asked.sampling.n, host.metrics)


async def _least_version(host: Host, asked: Asked) -> int | None:
    """What must be published before this can be answered. A pinned version is, but where another replica
    made it a moment ago.
    """
    pinned = asked.weights_version
    if pinned is None or pinned <= host.version or not host.ledger.shared:
        return asked.min_weights_version
    newest = await to_thread.run_sync(lambda: host.ledger.newest)
    return pinned if pinned <= newest else asked.min_weights_version


async def _observed(stream: Stream, n: int, metrics: Metrics) -> AsyncIterator[Event]:
    """The stream's events, timed as they come."""
    last: dict[int, float] = {}
    async for event in _events(stream, n):
        if isinstance(event, TokenEvent):
            moment = time.monotonic()
            if not last:
                metrics.first_token.observe(moment - stream.times.submitted)
                started = stream.times.started or moment
                metrics.queue_duration.observe(started - stream.times.submitted)
            if event.index in last:
                metrics.inter_token.observe(moment - last[event.index])
            last[event.index] = moment
        yield event


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
