"""Steps of a runner by themselves, without the engine around them."""

import random
from collections.abc import Sequence as Seq

from npt_core.engine import GenerationRequest, SamplingParams, Sequence, Span, StepRunner, Stream
from npt_core.engine.forward import nothing
from npt_core.engine.page_table import pages_for


def sequences(count: int, length: int, vocabulary: int, page: int) -> list[Sequence]:
    """Prompts of random tokens, each with pages of `page` tokens for one token more."""
    draw, each, found = random.Random(0), pages_for(length + 1, page), []
    for number in range(count):
        prompt = tuple(draw.randrange(vocabulary) for _ in range(length))
        sequence = Sequence(GenerationRequest(prompt, SamplingParams()), Stream(1, 0), 0, length + page)
        sequence.pages = list(range(number * each, (number + 1) * each))
        found.append(sequence)
    return found


def decoding(runners: Seq[StepRunner], asked: Seq[Sequence]) -> list[Span]:
    """The next step of `asked`, whose prompts all `runners` have read."""
    for sequence in asked:
        for runner in runners:
            runner.run([Span(sequence, 0, sequence.prompt_length)], nothing)
        sequence.computed = sequence.prompt_length
        sequence.tokens.append(1)
    return [Span(sequence, sequence.computed, len(sequence.tokens)) for sequence in asked]
