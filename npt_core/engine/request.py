"""What a caller asks of the engine: token ids in, sampling rules, a version and a deadline."""

from dataclasses import dataclass, field
from typing import Any

from npt_core.engine.errors import InvalidSampling

SEED_LIMIT = 2**63
"""Seeds are below this, so that `seed + index` of n sequences still fits 64 bits."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 keep every token.

    `n` sequences are drawn from one prompt; sequence i uses the generator seeded `seed + i`.
    `logprobs` k reports the k likeliest tokens beside each chosen one (0: the chosen one alone,
    `None`: nothing), under the model's own distribution, before temperature and truncation.

    Raises:
        InvalidSampling: with the field that is out of range.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    repetition_penalty: float = 1.0
    logprobs: int | None = None
    n: int = 1

    def __post_init__(self) -> None:
        _require(self.max_new_tokens >= 1, "max_new_tokens", "must be at least 1")
        _require(0 <= self.temperature < float("inf"), "temperature", "must be 0 or a number above")
        _require(0 < self.top_p <= 1, "top_p", "must be above 0 and at most 1")
        _require(self.top_k >= 0, "top_k", "must be at least 0")
        _require(0 < self.repetition_penalty < float("inf"), "repetition_penalty", "must be above 0")
        _require(self.logprobs is None or self.logprobs >= 0, "logprobs", "must be at least 0")
        _require(self.n >= 1, "n", "must be at least 1")
        _require(self.seed is None or 0 <= self.seed < SEED_LIMIT, "seed", "must be in [0, 2^63)")


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to continue.

    `weights_version` `None` is the newest at admission; `modulation_scale` `None` is 1;
    `deadline` is a reading of `time.monotonic()` after which the sequences end.
    """

    prompt_ids: tuple[int, ...]
    params: SamplingParams = field(default_factory=SamplingParams)
    weights_version: int | None = None
    modulation_scale: float | None = None
    deadline: float | None = None


def _require(holds: Any, name: str, reason: str) -> None:
    if not holds:
        raise InvalidSampling(name, reason)
