"""Stop strings, wherever in the text and however cut into pieces they come."""

from collections.abc import Sequence


class StopMatcher:
    """Passes text on up to the first stop string.

    The first is the one that ends earliest; of those, the one that begins earliest. How the
    text is cut into pieces makes no difference.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The part of the text so far that is safe to show and was not yet shown."""
        if self.stopped:
            return ""
        text = self._held + text
        found = self._first(text)
        if found is not None:
            self.stopped = True
            self._held = ""
            return text[:found]
        shown = len(text) - self._held_back(text)
        self._held = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        """What was held back because a stop string might have begun there."""
        held, self._held = self._held, ""
        return held

    def _first(self, text: str) -> int | None:
        """Where the first stop string begins."""
        places = [(text.find(stop), len(stop)) for stop in self._stops]
        found = [(start + length, start) for start, length in places if start >= 0]
        return min(found)[1] if found else None

    def _held_back(self, text: str) -> int:
        """Length of the longest end of `text` that a stop string could begin with."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
