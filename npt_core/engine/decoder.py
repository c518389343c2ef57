"""Fixed batches of prompts, answered by the kernels of a runner: for self-study, in pieces between the
engine's steps.

As `npt_core.generation.generate`, with the same draws, in a fraction of its time on a CPU.
"""

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from npt_core.engine.page_table import PAGE, pages_for
from npt_core.engine.request import GenerationRequest, SamplingParams
from npt_core.engine.runner import Runner
from npt_core.engine.sequence import Sequence, Span
from npt_core.engine.stream import Stream
from npt_core.generation import Decoding, choose, shared_prefix, uniforms_of

ROWS = 32
"""Of a pass: its pieces, half a layer each, take a millisecond of two cores."""


class Decoder:
    """Answers of the model of `runner`, which is `exact`, as it is without a bank. `pause` is called between
    pieces.
    """

    def __init__(self, runner: Runner, pause: Callable[[], None]) -> None:
        self._runner, self._pause = runner, pause

    def __call__(
        self,
        prompts: Seq[Seq[int]],
        decoding: Decoding,
        groups: Seq[int] | None = None,
        seeds: Seq[int] | None = None,
    ) -> list[list[int]]:
        """See `generate`; without `groups` all prompts are one. Beyond the positions of the model there are
        no tokens: a prompt as long as that has no answer.
        """
        answers: list[list[int]] = [[] for _ in prompts]
        fitting = [i for i, prompt in enumerate(prompts) if len(prompt) < self._runner.positions]
        for start in range(0, len(fitting), decoding.batch_size):
            chosen = fitting[start : start + decoding.batch_size]
            uniforms = uniforms_of([seeds[i] if seeds else decoding.seed_of(i) for i in chosen], decoding)
            members = [groups[i] if groups else 0 for i in chosen]
            answered = self._answered([prompts[i] for i in chosen], members, decoding, uniforms)
            for i, answer in zip(chosen, answered, strict=True):
                answers[i] = answer
        return answers

    def _answered(
        self, prompts: Seq[Seq[int]], groups: Seq[int], decoding: Decoding, uniforms: Tensor
    ) -> list[list[int]]:
        sequences, pages = _laid_out(prompts, groups, decoding.max_new_tokens, self._runner.positions)
        runner = self._runner.beside(pages)
        logits = self._logits(runner, [_rest(sequence) for sequence in sequences])
        going = list(range(len(sequences)))
        for step in range(decoding.max_new_tokens):
            tokens = choose(logits, decoding, uniforms[going, step : step + 1]).tolist()
            chosen = dict(zip(going, tokens, strict=True))
            going = [i for i in going if chosen[i] not in decoding.end_ids]
            for i in going:
                sequences[i].computed = len(sequences[i].tokens)
                sequences[i].tokens.append(chosen[i])
            going = [i for i in going if len(sequences[i].tokens) < sequences[i].limit]
            if not going:
                break
            logits = self._logits(runner, [_rest(sequences[i]) for i in going])
        return [s.tokens[s.prompt_length :] for s in sequences]

    def _logits(self, runner: Runner, spans: Seq[Span]) -> Tensor:
        """Of the last token of each span, `[spans, vocab]`."""
        return torch.cat([runner.run(some, self._pause) for some in _passes(spans)])


def _rest(sequence: Sequence) -> Span:
    return Span(sequence, sequence.computed, len(sequence.tokens))


def _laid_out(prompts: Seq[Seq[int]], groups: Seq[int], new: int, most: int) -> tuple[list[Sequence], int]:
    """Sequences of at most so many new tokens and so many in all, with pages, and how many pages those are.
    Whole pages of what the prompts of a group begin with are those of its first one, and computed by it.
    """
    members: dict[int, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    found, pages = dict[int, Sequence](), 0
    for rows in members.values():
        shared = shared_prefix([prompts[i] for i in rows]) // PAGE if len(rows) > 1 else 0
        for i in rows:
            request = GenerationRequest(tuple(prompts[i]), SamplingParams())
            sequence = Sequence(request, Stream(1, 0), 0, min(len(prompts[i]) + new, most))
            first = found.get(rows[0])
            common = first.pages[:shared] if first else []
            own = pages_for(sequence.limit) - len(common)
            sequence.pages = [*common, *range(pages, pages + own)]
            sequence.computed, pages = PAGE * len(common), pages + own
            found[i] = sequence
    return [found[i] for i in range(len(prompts))], pages


def _passes(spans: Seq[Span]) -> Iterator[list[Span]]:
    """The spans in their order, cut so that no pass has more than `ROWS` rows."""
    some, room = list[Span](), ROWS
    for span in spans:
        start = span.start
        while start < span.end:
            end = min(start + room, span.end)
            some.append(Span(span.sequence, start, end))
            room -= end - start
            start = end
            if room == 0:
                yield some
                some, room = [], ROWS
    if some:
        yield some
