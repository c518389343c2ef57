"""Draft tokens without a draft model: what followed the last tokens where they stood before.

Prompt lookup decoding (Saxena, 2023). Answers repeat names and phrases of their context.
"""

from collections.abc import Sequence


class PromptLookup:
    """Reads one growing text; the same list of tokens is passed each time."""

    __slots__ = ("_followed", "_hits", "_read")

    def __init__(self) -> None:
        self._followed: dict[tuple[int, ...], int] = {}
        self._read = 1
        self._hits = 0

    def draft(self, tokens: Sequence[int], most: int) -> list[int]:
        """A guess of what follows `tokens`: one token more than were right the last time, at most `most`."""
        for i in range(self._read, len(tokens)):
            self._followed[tokens[i - 1],] = tokens[i]
            if i > 1:
                self._followed[tokens[i - 2], tokens[i - 1]] = tokens[i]
        self._read = max(len(tokens), 1)
        last, drafted = tuple(tokens[-2:]), list[int]()
        while len(drafted) < min(self._hits + 1, most):
            token = self._followed.get(last, self._followed.get(last[-1:]))
            if token is None:
                break
            drafted.append(token)
            last = (*last[-1:], token)
        return drafted

    def tell(self, hits: int) -> None:
        """So many of the last draft were right."""
        self._hits = hits
