"""A runner that counts: after token t comes t + 1 + weights_version, modulo the vocabulary."""

import threading
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any

import torch
from torch import Tensor

from npt_core.engine import Sequence, Span
from npt_core.engine.page_table import PAGE

VOCAB = 64


class CountingRunner:
    """With a `gate`, every step first waits for one permit, so tests decide when it is computed."""

    draft_tokens = 0  # one token a step
    batch_tokens = 128
    num_tokens = VOCAB

    def __init__(
        self, gate: threading.Semaphore | None = None, max_positions: int = 48, num_pages: int = 64
    ) -> None:
        self.max_positions = max_positions
        self.num_pages, self.page_size = num_pages, PAGE
        self.gate = gate
        self.entered = threading.Semaphore(0)
        self.calls: list[dict[str, Any]] = []

    def run(self, spans: Seq[Span], between: Callable[[], None], /) -> Tensor:
        self.entered.release()
        if self.gate is not None:
            self.gate.acquire()
        between()
        logits = torch.zeros(sum(span.samples for span in spans), VOCAB)
        for row, span in enumerate(span for span in spans if span.samples):
            logits[row, (span.sequence.tokens[-1] + 1 + span.sequence.version) % VOCAB] = 10.0
        for span in spans:
            self.calls.append(
                {
                    "ids": span.sequence.tokens[span.start : span.end],
                    "weights_version": span.sequence.version,
                    "modulation_scale": span.sequence.request.modulation_scale,
                }
            )
        return logits


class BrokenRunner(CountingRunner):
    """Fails in its second step."""

    def run(self, spans: Seq[Span], between: Callable[[], None], /) -> Tensor:
        if self.calls:
            raise RuntimeError("out of memory")
        return super().run(spans, between)


class RememberingRunner(CountingRunner):
    """Writes what it reads into its pages, and answers from what it finds there: see `after`."""

    draft_tokens = 3

    def __init__(self, gate: threading.Semaphore | None, num_pages: int) -> None:
        super().__init__(gate, num_pages * PAGE, num_pages)
        self.memory: dict[int, tuple[Any, int]] = {}

    def run(self, spans: Seq[Span], between: Callable[[], None], /) -> Tensor:
        self.entered.release()
        if self.gate is not None:
            self.gate.acquire()
        for span in spans:
            computed = [*span.sequence.tokens[span.start : span.end], *span.draft]
            for position, token in enumerate(computed, span.start):
                self.memory[_slot(span.sequence, position)] = (span.sequence.cache_root, token)
        ends = [(s.sequence, s.end + i) for s in spans if s.samples for i in range(len(s.draft) + 1)]
        logits = torch.zeros(len(ends), VOCAB)
        for row, (sequence, end) in enumerate(ends):
            found = [self.memory[_slot(sequence, position)] for position in range(end)]
            logits[row, after(found)] = 10.0
        return logits


def after(known: Seq[tuple[Any, int]]) -> int:
    """The token after `known`: for each position what it was computed under, and its token."""
    return hash(tuple(known)) % VOCAB


def _slot(sequence: Sequence, position: int) -> int:
    return sequence.pages[position // PAGE] * PAGE + position % PAGE
