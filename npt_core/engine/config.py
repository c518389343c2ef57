"""How much the engine takes on."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """`max_running` sequences are computed at once while `queue_size` more may wait.

    A step computes about `batch_tokens` tokens, by default as many as suit the runner. A larger one reads
    long prompts sooner and makes those who are being answered wait longer for their next token; decoding
    always goes first.
    Beside steps, what is executed (consolidation) may take `writers_share` of the time.
    `drafts` lets a sequence that decodes alone guess its next tokens.
    """

    max_running: int = 64
    queue_size: int = 256
    batch_tokens: int | None = None
    prefix_cache: bool = True
    writers_share: float = 0.2
    drafts: bool = True

    def __post_init__(self) -> None:
        if self.max_running < 1 or (self.batch_tokens or 1) < 1 or self.queue_size < 0:
            raise ValueError("max_running and batch_tokens must be at least 1, queue_size at least 0")
