"""Token ids to text, piece by piece, without cutting a character in two."""

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are no whole character, yet."""

PROMPT_TAIL = 6
"""Prompt tokens decoded along: tokenizers write a token by what stands before it."""

MOST_PENDING = 16
"""Tokens that may wait for the end of a character. It takes four at most, unless each ends one and begins
another.
"""

Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """Text of an answer to `prompt_ids`; all pieces together are the text of all tokens.

    Only a short tail is decoded per token: from the last safe point, over what has been said,
    to the new token. What is new is what this adds to what it was without it.
    """

    def __init__(self, decode: Decode, prompt_ids: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(prompt_ids[-PROMPT_TAIL:])
        self._said = len(self._ids)
        self._held = 0  # characters at the end of what was said that were not, as they may become another

    def push(self, token_id: int) -> str:
        """The text that one more token completes; empty while a character is incomplete."""
        self._ids.append(token_id)
        text = self._pending()
        if not text.endswith(REPLACEMENT):
            self._advance(held=0)
            return text
        if len(self._ids) - self._said < MOST_PENDING:
            return ""
        # Whatever follows changes the last character alone.
        self._advance(held=1)
        return text[:-1]

    def flush(self) -> str:
        """What is left at the end, incomplete characters as the replacement character."""
        text = self._pending()
        self._advance(held=0)
        return text

    def _pending(self) -> str:
        before = self._decode(self._ids[: self._said])
        return self._decode(self._ids)[len(before) - self._held :]

    def _advance(self, held: int) -> None:
        # The tokens just said become the context of the next ones; older ones are not needed.
        del self._ids[: max(0, len(self._ids) - PROMPT_TAIL)]
        self._said, self._held = len(self._ids), held
