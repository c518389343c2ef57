"""What a caller asks of the engine: token ids in, sampling rules, a version and a deadline."""

from dataclasses import dataclass, field
from typing import Any

from npt_core.engine.errors import InvalidSampling

SEED_LIMIT = 2**63
"""Seeds are below this, so that `seed + index` of n sequences still fits 64 bits."""
LEAST_TEMPERATURE, LEAST_TOP_P = 1e-4, 1e-6
"""What is above 0 counts as at least this: scores divided by less may overflow float32, and a step that
draws from what is no distribution fails, with everybody's answer.
"""
PENALTIES = 0.01, 100.0


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 keep every token. What is
    hardly above 0 counts as a little more.

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
        least, most = PENALTIES
        reason = f"must be from {least} to {most}"
        _require(least <= self.repetition_penalty <= most, "repetition_penalty", reason)
        _require(self.logprobs is None or self.logprobs >= 0, "logprobs", "must be at least 0")
        _require(self.n >= 1, "n", "must be at least 1")
        _require(self.seed is None or 0 <= self.seed < SEED_LIMIT, "seed", "must be in [0, 2^63)")
        if self.temperature > 0:
            object.__setattr__(self, "temperature", max(self.temperature, LEAST_TEMPERATURE))
        object.__setattr__(self, "top_p", max(self.top_p, LEAST_TOP_P))


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
