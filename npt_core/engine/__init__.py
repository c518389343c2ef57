"""The engine: token ids in, token ids out, each request at one weights version."""

from npt_core.engine.engine import Engine
from npt_core.engine.errors import (
    EmptyPrompt,
    EngineClosed,
    EngineError,
    InvalidSampling,
    PromptTooLong,
    QueueFull,
    VersionNotFound,
)
from npt_core.engine.events import Event, FinishEvent, FinishReason, TokenEvent, TokenLogprob
from npt_core.engine.request import GenerationRequest, SamplingParams
from npt_core.engine.stream import Stream

__all__ = [
    "EmptyPrompt",
    "Engine",
    "EngineClosed",
    "EngineError",
    "Event",
    "FinishEvent",
    "FinishReason",
    "GenerationRequest",
    "InvalidSampling",
    "PromptTooLong",
    "QueueFull",
    "SamplingParams",
    "Stream",
    "TokenEvent",
    "TokenLogprob",
    "VersionNotFound",
]
