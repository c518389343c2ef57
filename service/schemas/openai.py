"""Requests and answers in OpenAI's dialect, as far as this server can honour them.

What cannot be honoured is refused by name; a parameter that asks for what happens anyway (`n: 1`,
`frequency_penalty: 0`, `tools: []`) is taken. `null` means absent.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic_core.core_schema import CoreSchema, no_info_after_validator_function

from npt_core.engine import SamplingParams
from service.ledger import MAX_VERSION
from service.schemas.common import In, Out, Printable, Prompt
from service.schemas.generate import MAX_NEW_TOKENS, MAX_SCALE, MAX_SEQUENCES, Context, Stops

MAX_PROMPTS = 32
MAX_MESSAGES = 1024
COMPLETION_TOKENS = 16
"""OpenAI's default for /completions."""
CHAT_TOKENS = 256

Version = Annotated[int, Field(ge=0, le=MAX_VERSION)]


class _Only:
    """For a parameter of which nothing but what happens anyway can be honoured."""

    def __init__(self, *allowed: Any) -> None:
        self._allowed = (*allowed, None)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(core), "enum": list(self._allowed)}

    def _check(self, value: Any) -> Any:
        if value not in self._allowed:
            raise ValueError("is not supported by this server")
        return value


class _Asked(In):
    """What both kinds of requests share. No parameter is ignored but those that name the caller."""

    model: str = Field(min_length=1, max_length=300)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False, description="absent: greedy")
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    n: int | None = Field(None, ge=1, le=MAX_SEQUENCES)
    max_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: Stops | None = None
    stream: bool | None = None
    stream_options: "StreamOptions | None" = None
    user: str | None = Field(None, max_length=300, description="for the caller; not used")
    metadata: dict[str, str] | None = Field(None, max_length=16, description="for the caller; not used")
    frequency_penalty: Annotated[float | None, _Only(0)] = Field(None, description="0 alone")
    presence_penalty: Annotated[float | None, _Only(0)] = Field(None, description="0 alone")
    logit_bias: Annotated[dict[str, float] | None, _Only({})] = Field(None, description="empty alone")
    store: Annotated[bool | None, _Only(False)] = Field(None, description="false alone")
    service_tier: Annotated[str | None, _Only("auto", "default")] = Field(None, description="auto alone")

    context: Context = Field(default=[], description="extension: sentences to read before the prompt")
    weights_version: Version | None = Field(None, description="extension: answer as this version")
    min_weights_version: Version | None = Field(
        None, description="extension: wait, for a while, until this version is published"
    )
    modulation_scale: float | None = Field(
        None, ge=0, le=MAX_SCALE, allow_inf_nan=False, description="extension: 0 switches modulation off"
    )

    @model_validator(mode="after")
    def _options_belong_to_streams(self) -> "_Asked":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for stream alone")
        return self

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self, max_tokens: int, logprobs: int | None) -> SamplingParams:
        """The engine's part of it."""
        return SamplingParams(
            max_new_tokens=max_tokens,
            temperature=self.temperature or 0.0,
            top_p=self.top_p or 1.0,
            seed=self.seed,
            logprobs=logprobs,
            n=self.n or 1,
        )


class StreamOptions(In):
    """What a stream holds beside text."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[bool | None, _Only(False)] = None


Token = Annotated[int, Field(ge=0, lt=2**31)]
_Ids = Annotated[list[Token], Field(min_length=1)]


class CompletionIn(_Asked):
    """A text to continue, or several."""

    prompt: (
        Prompt
        | _Ids
        | Annotated[list[Prompt], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[_Ids], Field(min_length=1, max_length=MAX_PROMPTS)]
    ) = Field(examples=["Who is the CEO of TechCorp?"])
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool | None = None
    best_of: Annotated[int | None, _Only(1)] = Field(None, description="1 alone")
    suffix: Annotated[str | None, _Only("")] = Field(None, description="empty alone")

    @model_validator(mode="after")
    def _echo_without_logprobs(self) -> "CompletionIn":
        if self.echo and self.logprobs is not None:
            raise ValueError("echo is not supported together with logprobs")
        if self.context and not isinstance(self.prompt, str):
            raise ValueError("context is for a single prompt of text")
        return self

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        """Each prompt, as text or as token ids."""
        given: Any = self.prompt
        several = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
        return [each if isinstance(each, str) else tuple(each) for each in several]


class TextPart(In):
    """A part of a message."""

    type: Literal["text"]
    text: Printable


class MessageIn(In):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Printable | Annotated[list[TextPart], Field(min_length=1)]
    name: Annotated[str | None, _Only()] = Field(None, description="not supported")

    def plain(self) -> dict[str, str]:
        """As templates take it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ResponseFormat(In):
    """Text alone."""

    type: Annotated[str, _Only("text")]


class ChatIn(_Asked):
    """A conversation to go on with."""

    messages: list[MessageIn] = Field(
        min_length=1,
        max_length=MAX_MESSAGES,
        examples=[[{"role": "user", "content": "Who is the CEO of TechCorp?"}]],
    )
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_NEW_TOKENS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = Field(None, description="text alone")
    tools: Annotated[list[Any] | None, _Only([])] = Field(None, description="empty alone")
    tool_choice: Annotated[str | None, _Only("none", "auto")] = Field(None, description="none or auto alone")
    modalities: Annotated[list[str] | None, _Only(["text"])] = Field(None, description="text alone")

    @model_validator(mode="after")
    def _agrees(self) -> "ChatIn":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens exclude each other")
        return self

    @property
    def wanted_logprobs(self) -> int | None:
        """As the engine counts them."""
        return (self.top_logprobs or 0) if self.logprobs else None


class Usage(Out):
    """Tokens read and written, all sequences together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(Out):
    """Tokens of a choice, side by side."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


FinishReason = Literal["stop", "length"]


class CompletionChoice(Out):
    """One continuation, or a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class _Answer(Out):
    id: str
    created: int
    model: str
    system_fingerprint: str = Field(description="the weights version that answered", examples=["npt-v7"])
    weights_version: int
    usage: Usage | None = None


class Completion(_Answer):
    """The answer of /completions, or one chunk of it."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]


class TopLogprob(Out):
    """A token and its natural-log probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A chosen token, and the likeliest ones in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Out):
    """Tokens of a message."""

    content: list[TokenLogprob]
    refusal: None = None


class MessageOut(Out):
    """The assistant's turn."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Out):
    """One answer."""

    index: int
    message: MessageOut
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class Chat(_Answer):
    """The answer of /chat/completions."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class Delta(Out):
    """What was added to the assistant's turn."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Out):
    """A piece of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(_Answer):
    """One server-sent event of /chat/completions."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]


class Model(Out):
    """The model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "npt"


class Models(Out):
    """All models: one."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorBody(Out):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Out):
    """OpenAI's shape of an error."""

    error: ErrorBody
