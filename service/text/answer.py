"""One sequence of an answer as text: tokens in, safe text out, ended by a stop string or not."""

from collections.abc import Sequence

from service.text.detokenizer import Decode, Detokenizer
from service.text.stops import StopMatcher


class AnswerText:
    """Detokenizer and stop strings in a row."""

    def __init__(self, decode: Decode, prompt_ids: Sequence[int], stops: Sequence[str]) -> None:
        self._tokens = Detokenizer(decode, prompt_ids)
        self._stops = StopMatcher(stops)

    def has_stopped(self) -> bool:
        """Whether a stop string was found; no more text comes."""
        return self._stops.stopped

    def push(self, token_id: int) -> str:
        """The text that is safe to show after one more token."""
        return self._stops.push(self._tokens.push(token_id))

    def flush(self) -> str:
        """The rest, at the end of the sequence."""
        rest = self._stops.push(self._tokens.flush())
        return rest + self._stops.flush()
