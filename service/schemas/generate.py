"""POST /generate."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from npt_core.engine import FinishReason, SamplingParams
from service.ledger import MAX_VERSION
from service.schemas.common import AS_PATTERN, IS_PRINTABLE, In, Out, Printable, Prompt, one_or_many

MAX_SEQUENCES = 8
MAX_STOPS = 8
MAX_CONTEXTS = 256
MAX_LOGPROBS = 20
MAX_NEW_TOKENS = 4096
MAX_SCALE = 10.0

_Stop = Annotated[str, StringConstraints(min_length=1, max_length=200), IS_PRINTABLE, AS_PATTERN]
_Stops = Annotated[list[_Stop], Field(max_length=MAX_STOPS)]
_Context = Annotated[list[Printable], Field(max_length=MAX_CONTEXTS)]
Stops = Annotated[_Stops, BeforeValidator(one_or_many, json_schema_input_type=_Stop | _Stops)]
Context = Annotated[_Context, BeforeValidator(one_or_many, json_schema_input_type=Printable | _Context)]


class GenerateIn(In):
    """A prompt to continue, and how."""

    prompt: Prompt = Field(examples=["Who is the CEO of TechCorp?"])
    context: Context = Field(default=[], description="sentences to read before the prompt")
    max_new_tokens: int = Field(64, ge=1, le=MAX_NEW_TOKENS)
    temperature: float = Field(0.0, ge=0, le=10, allow_inf_nan=False, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    top_k: int = Field(0, ge=0, le=2**31, description="0 keeps every token")
    repetition_penalty: float = Field(1.0, ge=0.01, le=10, allow_inf_nan=False)
    seed: int | None = Field(None, ge=0, lt=2**63, description="the same seed, the same text")
    stop: Stops = Field(default=[], description="the answer ends before any of these")
    n: int = Field(1, ge=1, le=MAX_SEQUENCES, description="sequences to draw")
    logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="likeliest tokens to report beside each token"
    )
    stream: bool = Field(False, description="answer with server-sent events")
    modulation: bool = Field(
        False,
        description="tell how much dynamic modulation changed each token, at the cost of one more pass over "
        "prompt and answer; for one sequence, and a model with adapters",
    )
    weights_version: int | None = Field(None, ge=0, le=MAX_VERSION, description="answer as this version")
    min_weights_version: int | None = Field(
        None, ge=0, le=MAX_VERSION, description="wait, for a while, until this version is published"
    )
    modulation_scale: float | None = Field(
        None,
        ge=0,
        le=MAX_SCALE,
        allow_inf_nan=False,
        description="strength of dynamic modulation: 1 if absent, 0 switches it off",
    )

    @model_validator(mode="after")
    def _versions_agree(self) -> "GenerateIn":
        pinned, least = self.weights_version, self.min_weights_version
        if pinned is not None and least is not None and pinned < least:
            raise ValueError("weights_version must not be below min_weights_version")
        return self

    @model_validator(mode="after")
    def _one_is_measured(self) -> "GenerateIn":
        if self.modulation and self.n > 1:
            raise ValueError("modulation is told of one sequence: n must be 1")
        return self

    def sampling(self) -> SamplingParams:
        """The engine's part of it."""
        return SamplingParams(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            repetition_penalty=self.repetition_penalty,
            logprobs=self.logprobs,
            n=self.n,
        )


class Likely(Out):
    """A token and its natural-log probability."""

    token: str
    token_id: int
    logprob: float


class TokenOut(Likely):
    """A chosen token, and the likeliest ones in its place."""

    top: list[Likely] = Field(default=[])


class Usage(Out):
    """Tokens read and written, all sequences together."""

    prompt_tokens: int
    completion_tokens: int


class Timings(Out):
    """Milliseconds since the request was admitted."""

    queue_ms: float | None = Field(None, description="until decoding began")
    first_token_ms: float | None = None
    total_ms: float | None = None


class Choice(Out):
    """One of several sequences."""

    index: int
    text: str
    finish_reason: FinishReason
    logprobs: list[TokenOut] | None = None


class TouchedToken(Out):
    """A token, and how much attention changed what the MLPs make of it."""

    token: str
    token_id: int
    strength: float = Field(
        description="mean over the layers with an adapter of |s (g * mult + add)| / |g|: by which share of "
        "itself modulation changed the gate g; 0 where modulation_scale s is 0"
    )


class Modulation(Out):
    """Dynamic modulation, token by token."""

    prompt: list[TouchedToken] = Field(description="with the context, as the model read it")
    completion: list[TouchedToken]


class GenerateOut(Out):
    """The answer; with `n` above 1, `choices` holds all and `text` is the first."""

    id: str
    text: str = Field(examples=[" Dr. Sarah Chen."])
    finish_reason: FinishReason
    usage: Usage
    weights_version: int
    timings: Timings
    logprobs: list[TokenOut] | None = None
    choices: list[Choice] | None = None
    modulation: Modulation | None = None


class TokenChunk(Out):
    """Server-sent event `token`: text that was added to one sequence."""

    index: int
    text: str
    logprobs: list[TokenOut] | None = None


StreamEventName = Literal["token", "done", "error"]
