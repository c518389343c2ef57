"""Answers in OpenAI's dialect, put together from pieces: whole, or as server-sent events."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from npt_core.engine import EngineError, FinishReason, TokenEvent
from service.answers import UNBUFFERED, kept_alive
from service.generation import End, Piece, Running
from service.problems import openai_error, problem_of
from service.request_errors import FailedGeneration
from service.schemas import openai as schema

DONE = format_sse_event(data_str="[DONE]")


@dataclass(frozen=True, slots=True)
class Head:
    """What every part of one answer repeats."""

    model: str
    weights_version: int
    prefix: str
    id: str = field(default_factory=lambda: uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def fields(self) -> dict[str, Any]:
        """For a schema."""
        return {
            "id": f"{self.prefix}-{self.id}",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": f"npt-v{self.weights_version}",
            "weights_version": self.weights_version,
        }


@dataclass(slots=True)
class Group:
    """The prompts of one request, all running."""

    parts: Sequence[Running]

    def cancel(self) -> None:
        """Stop working on all of them."""
        for part in self.parts:
            part.stream.cancel()

    @property
    def prompt_tokens(self) -> int:
        return sum(len(part.prompt_ids) for part in self.parts)

    @property
    def sequences(self) -> int:
        return sum(part.n for part in self.parts)

    def of(self, index: int) -> Running:
        """The prompt behind a sequence."""
        return self.parts[index // self.parts[0].n]

    async def pieces(self) -> AsyncIterator[Piece | End]:
        """Pieces of all sequences as they come. Raises `FailedGeneration` where the engine failed."""
        queue: asyncio.Queue[Piece | End | BaseException] = asyncio.Queue()
        tasks = [
            asyncio.create_task(_forward(part, number * part.n, queue))
            for number, part in enumerate(self.parts)
        ]
        open_sequences = self.sequences
        try:
            while open_sequences:
                piece = await queue.get()
                if isinstance(piece, BaseException):
                    raise piece
                if isinstance(piece, End):
                    open_sequences -= 1
                    if piece.reason is FinishReason.ERROR:
                        raise FailedGeneration
                yield piece
        finally:
            for task in tasks:
                task.cancel()


async def _forward(part: Running, first: int, queue: asyncio.Queue[Piece | End | BaseException]) -> None:
    try:
        async for piece in part.pieces():
            if isinstance(piece, Piece):
                queue.put_nowait(Piece(first + piece.index, piece.text, piece.token))
            else:
                queue.put_nowait(End(first + piece.index, piece.reason))
    except Exception as error:  # whoever waits for the next piece is told
        queue.put_nowait(error)


@dataclass(slots=True)
class _Sequence:
    text: str = ""
    tokens: list[TokenEvent] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    reason: schema.FinishReason = "stop"


class Collected:
    """Sequences of one request as far as they came."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.sequences = [_Sequence() for _ in range(group.sequences)]

    def add(self, piece: Piece | End) -> None:
        """Take in the next piece."""
        sequence = self.sequences[piece.index]
        if isinstance(piece, End):
            sequence.reason = reason_of(piece.reason)
            return
        if piece.token is not None:
            sequence.tokens.append(piece.token)
            sequence.offsets.append(len(sequence.text))
        sequence.text += piece.text

    def usage(self) -> schema.Usage:
        """So far."""
        written = sum(len(sequence.tokens) for sequence in self.sequences)
        read = self.group.prompt_tokens
        return schema.Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


async def completion(group: Group, head: Head, echoed: Sequence[str]) -> schema.Completion:
    """The whole answer of /completions; `echoed` is put before the text of each prompt."""
    collected = await _collected(group)
    choices = [
        schema.CompletionChoice(
            index=index,
            text=echoed[index // group.parts[0].n] + sequence.text,
            logprobs=completion_logprobs(group.of(index), sequence.tokens, sequence.offsets),
            finish_reason=sequence.reason,
        )
        for index, sequence in enumerate(collected.sequences)
    ]
    return schema.Completion(**head.fields(), choices=choices, usage=collected.usage())


async def chat(group: Group, head: Head) -> schema.Chat:
    """The whole answer of /chat/completions."""
    collected = await _collected(group)
    choices = [
        schema.ChatChoice(
            index=index,
            message=schema.MessageOut(content=sequence.text.lstrip()),
            logprobs=chat_logprobs(group.of(index), sequence.tokens),
            finish_reason=sequence.reason,
        )
        for index, sequence in enumerate(collected.sequences)
    ]
    return schema.Chat(**head.fields(), choices=choices, usage=collected.usage())


async def _collected(group: Group) -> Collected:
    collected = Collected(group)
    async for piece in group.pieces():
        collected.add(piece)
    return collected


Chunk = Callable[[Collected, Piece | End], BaseModel | None]


class StreamedOpenAI(EventSourceResponse):
    """Chunks, then `[DONE]`; an error after the first byte is a last chunk of its own.

    However the response ends, the engine stops working on it.
    """

    def __init__(
        self,
        group: Group,
        first: Sequence[BaseModel],
        chunk: Chunk,
        last: Callable[[Collected], BaseModel | None],
        headers: dict[str, str],
    ) -> None:
        events = _events(group, first, chunk, last)
        super().__init__(kept_alive(events), headers={**headers, **UNBUFFERED})
        self._group = group

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._group.cancel()


async def _events(
    group: Group, first: Sequence[BaseModel], chunk: Chunk, last: Callable[[Collected], BaseModel | None]
) -> AsyncIterator[bytes]:
    collected = Collected(group)
    try:
        for opening in first:
            yield _event(opening)
        async for piece in group.pieces():
            made = chunk(collected, piece)
            collected.add(piece)
            if made is not None:
                yield _event(made)
        closing = last(collected)
        if closing is not None:
            yield _event(closing)
        yield DONE
    except (FailedGeneration, EngineError) as error:
        yield _event(openai_error(problem_of(error)))


def streamed_completion(
    group: Group, head: Head, echoed: Sequence[str], includes_usage: bool, headers: dict[str, str]
) -> StreamedOpenAI:
    """The answer of /completions as events."""

    def made(choice: schema.CompletionChoice) -> schema.Completion:
        return schema.Completion(**head.fields(), choices=[choice])

    def chunk(collected: Collected, piece: Piece | End) -> schema.Completion | None:
        if isinstance(piece, End):
            return made(
                schema.CompletionChoice(
                    index=piece.index, text="", logprobs=None, finish_reason=reason_of(piece.reason)
                )
            )
        tokens = [] if piece.token is None else [piece.token]
        offset = len(collected.sequences[piece.index].text)
        logprobs = completion_logprobs(group.of(piece.index), tokens, [offset] * len(tokens))
        if not piece.text and logprobs is None:
            return None
        return made(
            schema.CompletionChoice(index=piece.index, text=piece.text, logprobs=logprobs, finish_reason=None)
        )

    def last(collected: Collected) -> schema.Completion | None:
        if not includes_usage:
            return None
        return schema.Completion(**head.fields(), choices=[], usage=collected.usage())

    first = [
        made(schema.CompletionChoice(index=index, text=text, logprobs=None, finish_reason=None))
        for index in range(group.sequences)
        if (text := echoed[index // group.parts[0].n])
    ]
    return StreamedOpenAI(group, first, chunk, last, headers)


def streamed_chat(group: Group, head: Head, includes_usage: bool, headers: dict[str, str]) -> StreamedOpenAI:
    """The answer of /chat/completions as events."""

    def made(
        index: int,
        delta: schema.Delta,
        logprobs: schema.ChatLogprobs | None = None,
        reason: schema.FinishReason | None = None,
    ) -> schema.ChatChunk:
        choice = schema.ChatChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=reason)
        return schema.ChatChunk(**head.fields(), choices=[choice])

    def chunk(collected: Collected, piece: Piece | End) -> schema.ChatChunk | None:
        if isinstance(piece, End):
            return made(piece.index, schema.Delta(), reason=reason_of(piece.reason))
        begun = bool(collected.sequences[piece.index].text.strip())
        text = piece.text if begun else piece.text.lstrip()
        logprobs = chat_logprobs(group.of(piece.index), [] if piece.token is None else [piece.token])
        if not text and logprobs is None:
            return None
        return made(piece.index, schema.Delta(content=text), logprobs)

    def last(collected: Collected) -> schema.ChatChunk | None:
        if not includes_usage:
            return None
        return schema.ChatChunk(**head.fields(), choices=[], usage=collected.usage())

    first = [made(index, schema.Delta(role="assistant", content="")) for index in range(group.sequences)]
    return StreamedOpenAI(group, first, chunk, last, headers)


def reason_of(reason: FinishReason) -> schema.FinishReason:
    """OpenAI knows two ends; an answer that ran out of time is cut off as one that ran out of tokens."""
    return "stop" if reason is FinishReason.STOP else "length"


def completion_logprobs(
    running: Running, tokens: Sequence[TokenEvent], offsets: Sequence[int]
) -> schema.CompletionLogprobs | None:
    """Side by side, if they were asked for."""
    known = [(token, token.logprob) for token in tokens if token.logprob is not None]
    if not known:
        return None

    def text(token_id: int) -> str:
        return running.template.decode([token_id])

    return schema.CompletionLogprobs(
        tokens=[text(token.token_id) for token, _ in known],
        token_logprobs=[logprob for _, logprob in known],
        top_logprobs=[{text(top.token_id): top.logprob for top in token.top_logprobs} for token, _ in known],
        text_offset=list(offsets),
    )


def chat_logprobs(running: Running, tokens: Sequence[TokenEvent]) -> schema.ChatLogprobs | None:
    """One entry a token, if they were asked for."""

    def likely(token_id: int, logprob: float) -> schema.TopLogprob:
        text = running.template.decode([token_id])
        return schema.TopLogprob(token=text, logprob=logprob, bytes=list(text.encode()))

    content = [
        schema.TokenLogprob(
            **likely(token.token_id, token.logprob).model_dump(),
            top_logprobs=[likely(top.token_id, top.logprob) for top in token.top_logprobs],
        )
        for token in tokens
        if token.logprob is not None
    ]
    return schema.ChatLogprobs(content=content) if content else None


def _event(data: BaseModel) -> bytes:
    return format_sse_event(data_str=data.model_dump_json(exclude_none=False))
