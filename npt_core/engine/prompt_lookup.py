"""Draft tokens without a draft model: what followed the last tokens where they stood before.

Prompt lookup decoding (Saxena, 2023). Answers repeat names and phrases of their context.
"""

from collections.abc import Sequence


class PromptLookup:
    """Reads one growing text; the same list of tokens is passed each time."""

    __slots__ = ("_followed", "_read")

    def __init__(self) -> None:
        self._followed: dict[tuple[int, ...], int] = {}
        self._read = 1

    def draft(self, tokens: Sequence[int]) -> int | None:
        """What lately followed the last two of `tokens`, else the last one; `None` if nothing did."""
        for i in range(self._read, len(tokens)):
            self._followed[tokens[i - 1],] = tokens[i]
            if i > 1:
                self._followed[tokens[i - 2], tokens[i - 1]] = tokens[i]
        self._read = max(len(tokens), 1)
        last = tuple(tokens[-2:])
        found = self._followed.get(last)
        return self._followed.get(last[-1:]) if found is None else found
