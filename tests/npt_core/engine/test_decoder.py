"""Fixed batches answered by kernels are answered as by `generate`."""

from __future__ import annotations

import pytest
import torch

import npt_core.engine.decoder as decoders
from npt_core.bank import Bank
from npt_core.engine import Runner, decoder_for
from npt_core.engine.page_table import PAGE
from npt_core.generation import Decoding, generate
from npt_core.model import NPTForCausalLM
from tests.npt_core.tiny import new_npt

NEW = 12


@pytest.fixture(scope="module")
def model() -> NPTForCausalLM:
    return new_npt()


def prompts_of(model: NPTForCausalLM, beginning: int, lengths: tuple[int, ...]) -> list[list[int]]:
    draw = torch.Generator().manual_seed(beginning)

    def some(count: int) -> list[int]:
        return torch.randint(3, model.config.vocab_size, (count,), generator=draw).tolist()

    shared = some(beginning)
    return [shared + some(length) for length in lengths]


def answers(model: NPTForCausalLM, *args: object, **kwargs: object) -> list[list[int]]:
    decode = decoder_for(Runner(model, 8), lambda: None)
    if decode is None:
        pytest.fail("there are no compiled kernels: install a C compiler, then the project")
    return decode(*args, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("beginning", [0, 5, PAGE, 2 * PAGE + 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_those_of_generate(model: NPTForCausalLM, beginning: int, temperature: float) -> None:
    """Prompts of several lengths, some longer than a pass, with a beginning in common or none."""
    prompts = prompts_of(model, beginning, (3, 40, 1, 7, 7, 70))
    endless = generate(model, prompts, Decoding(NEW, (), temperature, 0.9, seed=3))
    ends = endless[0][4], endless[3][1]  # so that answers are of several lengths
    decoding = Decoding(NEW, ends, temperature, 0.9, seed=3)
    wanted = generate(model, prompts, decoding)
    assert len({len(answer) for answer in wanted}) > 1
    assert answers(model, prompts, decoding) == wanted


def test_groups_and_seeds_are_those_of_generate(model: NPTForCausalLM) -> None:
    """Also where a batch ends within a group."""
    prompts = [*prompts_of(model, 20, (4, 9, 1)), *prompts_of(model, 37, (6, 2))]
    decoding = Decoding(NEW, (), 0.8, 0.95, batch_size=2)
    asked = {"groups": [0, 0, 0, 1, 1], "seeds": [11, 12, 13, 14, 15]}
    assert answers(model, prompts, decoding, **asked) == generate(model, prompts, decoding, **asked)  # type: ignore[arg-type]


def test_no_pass_is_longer_than_a_piece_and_each_pauses(
    model: NPTForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, pauses = list[int](), list[int]()
    run = Runner.run

    def counted(self: Runner, spans: list[decoders.Span], *between: object) -> torch.Tensor:
        rows.append(sum(span.end - span.start for span in spans))
        return run(self, spans, *between)  # type: ignore[arg-type]

    monkeypatch.setattr(Runner, "run", counted)
    decode = decoder_for(Runner(model, 8), lambda: pauses.append(len(rows)))
    assert decode is not None
    decode(prompts_of(model, 20, (90, 33, 1)), Decoding(NEW, ()))
    assert max(rows) == decoders.ROWS
    # What two of them begin with, a page, is read once.
    assert sum(rows) == 20 + 90 + (4 + 33) + (4 + 1) + 3 * (NEW - 1)
    assert pauses == [n + 1 for n in range(len(rows)) for _ in range(2 * len(model.model.layers) + 1)]


def test_answers_end_where_positions_do(model: NPTForCausalLM) -> None:
    """The first prompt, which shares its beginning, has no room for a token, the second one for three."""
    most = model.config.max_position_embeddings
    long, short = prompts_of(model, 40, (most - 40, 9))
    prompts, decoding = [long, long[: most - 3], short], Decoding(NEW, ())
    whole = generate(model, prompts[1:], decoding)
    assert answers(model, prompts, decoding) == [[], whole[0][:3], whole[1]]
    assert answers(model, [long], decoding) == [[]]


def test_the_bank_is_not_read(model: NPTForCausalLM) -> None:
    prompts, decoding = prompts_of(model, 3, (4, 5)), Decoding(NEW, ())
    wanted = generate(model, prompts, decoding)
    bank = Bank(model, {}).attach()
    try:
        for layer in bank.layers:
            layer.project = layer.down = layer.gate = None  # type: ignore[assignment,method-assign]
        assert answers(model, prompts, decoding) == wanted
    finally:
        for layer in model.model.layers:
            layer.mlp.plastic = None


def test_without_kernels_there_is_none(model: NPTForCausalLM) -> None:
    assert decoder_for(Runner(model, 8, native=False), lambda: None) is None
    assert decoder_for(object(), lambda: None) is None
