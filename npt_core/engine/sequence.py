"""One continuation of one prompt, and the part of it that a step computes."""

from collections.abc import Hashable
from dataclasses import dataclass

from npt_core.engine.page_table import PAGE, pages_for
from npt_core.engine.prompt_lookup import PromptLookup
from npt_core.engine.request import GenerationRequest
from npt_core.engine.stream import Stream


class Sequence:
    """Sequence `index` of a request, from admission to its end.

    `tokens` are the prompt and the answer so far; `pages` hold the keys and values of the first
    `computed` of them, and may reach further. `leader` is the sequence of the same request that
    computes the prompt first.
    """

    __slots__ = ("arrival", "cached", "computed", "index", "leader", "limit", "lookup", "node",
                 "pages", "prompt_length", "request", "stream", "tokens", "version")  # fmt: skip

    def __init__(
        self,
        request: GenerationRequest,
        stream: Stream,
        index: int,
        limit: int,
        leader: "Sequence | None" = None,
    ) -> None:
        self.request = request
        self.stream = stream
        self.index = index
        self.version = stream.weights_version
        self.tokens = list(request.prompt_ids)
        self.prompt_length = len(self.tokens)
        self.limit = limit  # prompt and answer together never exceed this
        self.leader = leader
        self.lookup = PromptLookup()
        self.arrival = -1  # the scheduler numbers sequences as they come
        self.pages: list[int] = []
        self.computed = 0
        self.cached = 0  # first pages that the prefix cache knows, up to its node `node`
        self.node: Hashable = self.cache_root

    @property
    def cache_root(self) -> Hashable:
        """What keys and values depend on beside the tokens."""
        return (self.version, self.request.modulation_scale)

    @property
    def pending(self) -> int:
        """Tokens whose keys and values are still to be computed."""
        return len(self.tokens) - self.computed

    @property
    def prefilling(self) -> bool:
        """Whether part of the prompt is still to be computed."""
        return self.computed < self.prompt_length

    @property
    def decoding(self) -> bool:
        """Whether only its last token is still to be computed, and is none of the prompt."""
        return not self.prefilling and self.pending == 1

    def draft(self, most: int, held: int) -> tuple[int, ...]:
        """A guess of the next tokens, as far as there is room for them and for the one after them, while
        its pages hold `held` tokens.
        """
        room = min(self.limit - 1, held) - len(self.tokens)
        return tuple(self.lookup.draft(self.tokens, min(most, room)))

    def reset(self) -> None:
        """Forget everything computed: what is left of a sequence that is preempted."""
        self.pages = []
        self.computed = 0
        self.cached, self.node = 0, self.cache_root


@dataclass(frozen=True, slots=True)
class Span:
    """The tokens `start` to `end` of a sequence, computed in one step.

    The prompt's part starts at a multiple of `PAGE`. `samples` is whether the span reaches the last
    token, so that its logits give the next one. After it come rows for `draft`, a guess of that one and
    those after it: as far as it is right, the logits of its rows give one more token each.
    """

    sequence: Sequence
    start: int
    end: int
    draft: tuple[int, ...] = ()

    @property
    def samples(self) -> bool:
        return self.end == len(self.sequence.tokens)

    @property
    def rows(self) -> int:
        """Rows it takes in the batch without its draft, at most: a CPU computes the prompt's part in
        multiples of `PAGE`.
        """
        prompt_end = min(self.end, self.sequence.prompt_length)
        if self.start >= prompt_end:
            return self.end - self.start
        return PAGE * (pages_for(prompt_end) - self.start // PAGE) + self.end - prompt_end
