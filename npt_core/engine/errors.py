"""What the engine refuses.

EngineError
├── InvalidSampling     a sampling parameter out of its range
├── EmptyPrompt         no token to continue
├── PromptTooLong       no room for even one new token
├── UnknownToken        a number that is no token of the model
├── VersionNotFound     the request names a weights version that was never published
├── VersionGone         it was published, and is no longer kept
├── QueueFull           as many sequences wait as may
└── EngineClosed        the engine no longer takes requests
    └── EngineFailed    as its thread ended by an error
"""


class EngineError(Exception):
    """Base of everything `Engine.submit` raises."""


class InvalidSampling(EngineError):
    """A sampling parameter is out of its range."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field} {reason}")
        self.field = field
        self.reason = reason


class EmptyPrompt(EngineError):
    """There is no token to continue."""

    def __init__(self) -> None:
        super().__init__("the prompt has no tokens")


class PromptTooLong(EngineError):
    """The prompt leaves no position for a new token."""

    def __init__(self, length: int, limit: int) -> None:
        super().__init__(f"the prompt has {length} tokens, at most {limit} fit")
        self.length = length
        self.limit = limit


class UnknownToken(EngineError):
    """The prompt holds a number that is no token of the model."""

    def __init__(self, num_tokens: int) -> None:
        self.field, self.reason = "prompt", f"must hold token ids from 0 to {num_tokens - 1}"
        super().__init__(f"{self.field} {self.reason}")


class VersionNotFound(EngineError):
    """The named weights version was never published here."""

    def __init__(self, version: int, newest: int) -> None:
        super().__init__(f"weights version {version} does not exist, the newest is {newest}")
        self.version = version
        self.newest = newest


class VersionGone(EngineError):
    """The named weights version is too old to be asked for."""

    def __init__(self, version: int, oldest: int, newest: int) -> None:
        super().__init__(
            f"weights version {version} is no longer kept, the oldest is {oldest}, the newest {newest}"
        )
        self.version = version
        self.oldest = oldest
        self.newest = newest


class QueueFull(EngineError):
    """Too many sequences wait already."""

    def __init__(self, capacity: int) -> None:
        super().__init__(f"the queue of {capacity} waiting sequences is full")
        self.capacity = capacity


class EngineClosed(EngineError):
    """The engine is shutting down."""

    def __init__(self) -> None:
        super().__init__("the engine is closed")


class EngineFailed(EngineClosed):
    """The engine's thread ended by an error; only a new engine answers again."""

    def __init__(self, failure: str) -> None:
        EngineError.__init__(self, f"the engine has failed: {failure}")
        self.failure = failure
