"""The engine: token ids in, token ids out, each request at one weights version."""

from npt_core.engine.config import EngineConfig
from npt_core.engine.engine import Engine, StepRunner
from npt_core.engine.errors import (
    EmptyPrompt,
    EngineClosed,
    EngineError,
    EngineFailed,
    InvalidSampling,
    PromptTooLong,
    QueueFull,
    UnknownToken,
    VersionGone,
    VersionNotFound,
)
from npt_core.engine.events import Event, FinishEvent, FinishReason, TokenEvent, TokenLogprob
from npt_core.engine.request import GenerationRequest, SamplingParams
from npt_core.engine.runner import Runner
from npt_core.engine.runners import page_size_for, passes_for, runner_for
from npt_core.engine.sequence import Sequence, Span
from npt_core.engine.stream import Stream
from npt_core.engine.threads import alone
from npt_core.engine.weights import UnsupportedModel

__all__ = [
    "EmptyPrompt",
    "Engine",
    "EngineClosed",
    "EngineConfig",
    "EngineError",
    "EngineFailed",
    "Event",
    "FinishEvent",
    "FinishReason",
    "GenerationRequest",
    "InvalidSampling",
    "PromptTooLong",
    "QueueFull",
    "Runner",
    "SamplingParams",
    "Sequence",
    "Span",
    "StepRunner",
    "Stream",
    "TokenEvent",
    "TokenLogprob",
    "UnknownToken",
    "UnsupportedModel",
    "VersionGone",
    "VersionNotFound",
    "alone",
    "page_size_for",
    "passes_for",
    "runner_for",
]
