"""Answers to /generate, put together from pieces: whole, or as server-sent events."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from uuid import uuid4

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from npt_core.engine import EngineError, FinishReason, TokenEvent
from service import problems
from service.generation import End, Piece, Running
from service.modulation import Measure
from service.request_errors import FailedGeneration
from service.schemas.generate import (
    Choice,
    GenerateOut,
    Likely,
    Modulation,
    StreamEventName,
    Timings,
    TokenChunk,
    TokenOut,
    Usage,
)

PING_S = 15.0
"""Proxies drop a silent connection after half a minute or more."""


UNBUFFERED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""As FastAPI sets them on its own event streams: no cache or proxy may hold events back."""


@dataclass(slots=True)
class _Sequence:
    text: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    tokens: list[TokenOut] = field(default_factory=list)
    reason: FinishReason | None = None


class Answer:
    """Collects the pieces of one request."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._sequences = [_Sequence() for _ in range(running.n)]
        self._first_token: float | None = None

    def add(self, piece: Piece | End) -> None:
        """Take in the next piece. Raises `FailedGeneration` where the engine failed."""
        sequence = self._sequences[piece.index]
        if isinstance(piece, End):
            if piece.reason is FinishReason.ERROR:
                raise FailedGeneration
            sequence.reason = piece.reason
            return
        sequence.text.append(piece.text)
        if piece.token is not None:
            self._first_token = self._first_token or time.monotonic()
            sequence.ids.append(piece.token.token_id)
            sequence.tokens += self.logprobs(piece.token) or []

    def logprobs(self, token: TokenEvent) -> list[TokenOut] | None:
        """The token with its probabilities, if they were asked for."""
        if token.logprob is None:
            return None
        top = [self._likely(entry.token_id, entry.logprob) for entry in token.top_logprobs]
        return [TokenOut(**self._likely(token.token_id, token.logprob).model_dump(), top=top)]

    @property
    def token_ids(self) -> Sequence[int]:
        """Of the first sequence."""
        return self._sequences[0].ids

    def result(self, modulation: Modulation | None = None) -> GenerateOut:
        """The whole answer, once every sequence has ended."""
        choices = [self._choice(index) for index in range(len(self._sequences))]
        first = choices[0]
        return GenerateOut(
            id=f"gen_{uuid4().hex}",
            text=first.text,
            finish_reason=first.finish_reason,
            usage=Usage(
                prompt_tokens=len(self._running.prompt_ids),
                completion_tokens=sum(len(sequence.ids) for sequence in self._sequences),
            ),
            weights_version=self._running.weights_version,
            timings=self._timings(),
            logprobs=first.logprobs,
            choices=choices if len(choices) > 1 else None,
            modulation=modulation,
        )

    def _choice(self, index: int) -> Choice:
        sequence = self._sequences[index]
        return Choice(
            index=index,
            text="".join(sequence.text),
            finish_reason=sequence.reason or FinishReason.CANCELLED,
            logprobs=sequence.tokens or None,
        )

    def _likely(self, token_id: int, logprob: float) -> Likely:
        text = self._running.template.decode([token_id])
        return Likely(token=text, token_id=token_id, logprob=logprob)

    def _timings(self) -> Timings:
        times = self._running.stream.times
        return Timings(
            queue_ms=_ms_since(times.submitted, times.started),
            first_token_ms=_ms_since(times.submitted, self._first_token),
            total_ms=_ms_since(times.submitted, time.monotonic()),
        )


def _ms_since(start: float, moment: float | None) -> float | None:
    return None if moment is None else round((moment - start) * 1000, 3)


async def whole(running: Running, measure: Measure | None = None) -> GenerateOut:
    """The answer when it is complete, with what `measure` tells of it."""
    answer = Answer(running)
    async for piece in running.pieces():
        answer.add(piece)
    return await _finished(answer, measure)


async def _finished(answer: Answer, measure: Measure | None) -> GenerateOut:
    return answer.result(None if measure is None else await measure(answer.token_ids))


class StreamedAnswer(EventSourceResponse):
    """Event `token` per piece of text, then one `done` with the whole answer, or one `error`.

    However the response ends, the engine stops working on it.
    """

    def __init__(self, running: Running, headers: dict[str, str], measure: Measure | None = None) -> None:
        super().__init__(kept_alive(_events(running, measure)), headers={**headers, **UNBUFFERED})
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._running.stream.cancel()


async def _events(running: Running, measure: Measure | None) -> AsyncIterator[bytes]:
    answer = Answer(running)
    try:
        async for piece in running.pieces():
            answer.add(piece)
            chunk = _chunk(answer, piece)
            if chunk is not None:
                yield _event("token", chunk)
        yield _event("done", await _finished(answer, measure))
    except (FailedGeneration, EngineError) as error:
        yield _event("error", problems.problem_of(error))


def _chunk(answer: Answer, piece: Piece | End) -> TokenChunk | None:
    """What a client is told of a piece: nothing, where it adds neither text nor numbers."""
    if isinstance(piece, End):
        return None
    logprobs = None if piece.token is None else answer.logprobs(piece.token)
    if not piece.text and logprobs is None:
        return None
    return TokenChunk(index=piece.index, text=piece.text, logprobs=logprobs)


async def kept_alive(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """`events`, with a comment whenever none came for a while."""
    upcoming = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            await asyncio.wait({upcoming}, timeout=PING_S)
            if not upcoming.done():
                yield KEEPALIVE_COMMENT
                continue
            event = upcoming.result()
            if event is None:
                return
            upcoming = asyncio.ensure_future(anext(events, None))
            yield event
    finally:
        upcoming.cancel()


def _event(name: StreamEventName, data: BaseModel) -> bytes:
    return format_sse_event(event=name, data_str=data.model_dump_json(exclude_none=True))
