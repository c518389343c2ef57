"""What consolidation asks of the model, by the kernels of a runner: answers to fixed batches of prompts, and
activations, in pieces between the engine's steps.

As `npt_core.consolidation.passes.ModulePasses`, with the same draws, in a fraction of its time on a CPU.
"""

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Seq
from typing import NamedTuple

import torch
from torch import Tensor

from npt_core.bank import Bank
from npt_core.consolidation import Asked, States, everything
from npt_core.engine.page_table import PAGE, pages_for
from npt_core.engine.request import GenerationRequest, SamplingParams
from npt_core.engine.runner import Runner
from npt_core.engine.sequence import Sequence, Span
from npt_core.engine.stream import Stream
from npt_core.generation import Decoding, choose, shared_prefix, uniforms_of

ROWS = 32
"""Of a pass: its pieces, a third of a layer each, take up to a millisecond of two cores."""


class _Kept(NamedTuple):
    """What was computed last without facts, by its tokens: `runner` has its keys and values."""

    runner: Runner
    sequences: Mapping[tuple[int, ...], Sequence]


class KernelPasses:
    """Passes of the model of `runner`, which is `exact`; see `npt_core.consolidation.Passes`. `pause` is
    called between pieces.
    """

    def __init__(self, runner: Runner, pause: Callable[[], None]) -> None:
        self._runner, self._pause = runner, pause
        self._kept: _Kept | None = None

    def decode(
        self,
        prompts: Seq[Seq[int]],
        decoding: Decoding,
        *,
        groups: Seq[int] | None = None,
        seeds: Seq[int] | None = None,
    ) -> list[list[int]]:
        """Without `groups` all prompts are one. Beyond the positions of the model there are no tokens: a
        prompt as long as that has no answer.
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

    def read(
        self,
        rows: Seq[Seq[int]],
        layers: Seq[int] = (),
        asked: Asked | None = None,
        bank: Bank | None = None,
        weights_version: int | None = None,
    ) -> States:
        """What all rows begin with is read once, and only what is asked where all of them were computed just
        before: answers, or the same rows without a bank.

        Raises:
            ValueError: the model has too few positions for what is asked.
        """
        self._pause()
        asked = everything(rows) if asked is None else asked
        # What comes after the last token that is asked changes nothing.
        needed = [row[: max(tokens) + 1] for row, tokens in zip(rows, asked, strict=True)]
        longest, most = max(map(len, needed)), self._runner.positions
        if longest > most:
            raise ValueError(f"{longest} tokens: the model has {most} positions")
        runner, sequences = self._kept_for(needed, asked, bank) or self._new_for(needed, asked, bank)
        version = bank.version if bank is not None and weights_version is None else weights_version
        for sequence in sequences:
            sequence.version = version or 0
        if bank is not None:
            runner = runner.reading(bank.layers)
        wanted = {id(s): set(tokens) for s, tokens in zip(sequences, asked, strict=True)}
        parts = []
        for spans in _passes([_rest(sequence) for sequence in sequences]):
            tokens = [(span.sequence, t) for span in spans for t in range(span.start, span.end)]
            chosen = [i for i, (sequence, t) in enumerate(tokens) if t in wanted[id(sequence)]]
            parts.append(runner.read(spans, chosen, layers, self._pause))
        logits, keys, outputs = zip(*parts, strict=True)
        return States(
            asked,
            torch.cat(logits),
            {i: torch.cat([part[i] for part in keys if i in part]) for i in layers},
            {i: torch.cat([part[i] for part in outputs if i in part]) for i in layers},
        )

    def _kept_for(
        self, rows: Seq[Seq[int]], asked: Asked, bank: Bank | None
    ) -> tuple[Runner, list[Sequence]] | None:
        """All of `rows`, computed up to what is asked, if that is kept, and as it is with `bank`: keys and
        values do not depend on what facts add in the last layer.
        """
        kept, each = self._kept, [tuple(row) for row in rows]
        if kept is None or len(set(each)) < len(each) or not kept.sequences.keys() >= set(each):
            return None
        if bank is not None and not all(layer.empty for layer in bank.layers[:-1]):
            return None
        sequences = [kept.sequences[row] for row in each]
        for sequence, tokens in zip(sequences, asked, strict=True):
            sequence.computed = min(tokens)
        return kept.runner, sequences

    def _new_for(self, rows: Seq[Seq[int]], asked: Asked, bank: Bank | None) -> tuple[Runner, list[Sequence]]:
        first = min(min(tokens) for tokens in asked)
        sequences, pages = _laid_out(rows, [0] * len(rows), 0, self._runner.positions, first)
        runner = self._runner.beside(pages)
        self._keep(runner, sequences if bank is None else ())
        return runner, sequences

    def _keep(self, runner: Runner, sequences: Seq[Sequence]) -> None:
        self._kept = _Kept(runner, {tuple(sequence.tokens): sequence for sequence in sequences})

    def _answered(
        self, prompts: Seq[Seq[int]], groups: Seq[int], decoding: Decoding, uniforms: Tensor
    ) -> list[list[int]]:
        self._pause()
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
        self._keep(runner, sequences)
        return [s.tokens[s.prompt_length :] for s in sequences]

    def _logits(self, runner: Runner, spans: Seq[Span]) -> Tensor:
        """Of the last token of each span, `[spans, vocab]`."""
        return torch.cat([runner.run(some, self._pause) for some in _passes(spans)])


def _rest(sequence: Sequence) -> Span:
    return Span(sequence, sequence.computed, len(sequence.tokens))


def _laid_out(
    prompts: Seq[Seq[int]], groups: Seq[int], new: int, most: int, own: int | None = None
) -> tuple[list[Sequence], int]:
    """Sequences of at most so many new tokens and so many in all, with pages, and how many pages those are.
    Whole pages of what the prompts of a group begin with are those of its first one, and computed by it,
    but tokens from `own` on are computed by each.
    """
    members: dict[int, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    found, pages = dict[int, Sequence](), 0
    for rows in members.values():
        shared = shared_prefix([prompts[i] for i in rows]) if len(rows) > 1 else 0
        shared = (shared if own is None else min(shared, own)) // PAGE
        for i in rows:
            request = GenerationRequest(tuple(prompts[i]), SamplingParams())
            sequence = Sequence(request, Stream(1, 0), 0, min(len(prompts[i]) + new, most))
            first = found.get(rows[0])
            common = first.pages[:shared] if first else []
            more = pages_for(sequence.limit) - len(common)
            sequence.pages = [*common, *range(pages, pages + more)]
            sequence.computed, pages = PAGE * len(common), pages + more
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
