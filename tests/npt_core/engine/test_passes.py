"""Consolidation's passes by kernels give what the model's modules give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import npt_core.engine.passes as passes
from npt_core.bank import Bank, Columns, Factors, FactWeights, Site, Whitening
from npt_core.consolidation import States
from npt_core.consolidation.passes import ModulePasses
from npt_core.consolidation.states import private_copy
from npt_core.engine import Runner, passes_for
from npt_core.engine.page_table import PAGE
from npt_core.generation import Decoding, generate
from npt_core.model import NPTForCausalLM
from tests.npt_core.tiny import new_npt

NEW = 12


@pytest.fixture(scope="module")
def model() -> NPTForCausalLM:
    return new_npt()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every pass of `read`."""
    rows, read = list[int](), Runner.read

    def counting(self: Runner, spans: list[passes.Span], *given: object) -> object:
        rows.append(sum(span.end - span.start for span in spans))
        return read(self, spans, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Runner, "read", counting)
    return rows


def prompts_of(model: NPTForCausalLM, beginning: int, lengths: tuple[int, ...]) -> list[list[int]]:
    draw = torch.Generator().manual_seed(beginning)

    def some(count: int) -> list[int]:
        return torch.randint(3, model.config.vocab_size, (count,), generator=draw).tolist()

    shared = some(beginning)
    return [shared + some(length) for length in lengths]


def by_kernels(model: NPTForCausalLM, pause: Callable[[], None] = lambda: None) -> passes.KernelPasses:
    made = passes_for(Runner(model, 8), pause)
    if made is None:
        pytest.fail("there are no compiled kernels: install a C compiler, then the project")
    return made


def answers(model: NPTForCausalLM, *args: object, **kwargs: object) -> list[list[int]]:
    return by_kernels(model).decode(*args, **kwargs)  # type: ignore[arg-type]


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

    def counted(self: Runner, spans: list[passes.Span], *between: object) -> torch.Tensor:
        rows.append(sum(span.end - span.start for span in spans))
        return run(self, spans, *between)  # type: ignore[arg-type]

    monkeypatch.setattr(Runner, "run", counted)
    counting = by_kernels(model, lambda: pauses.append(len(rows)))
    counting.decode(prompts_of(model, 20, (90, 33, 1)), Decoding(NEW, ()))
    assert max(rows) == passes.ROWS
    # What two of them begin with, a page, is read once.
    assert sum(rows) == 20 + 90 + (4 + 33) + (4 + 1) + 3 * (NEW - 1)
    assert_pauses(model, pauses, len(rows))


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
    assert passes_for(Runner(model, 8, native=False), lambda: None) is None
    assert passes_for(object(), lambda: None) is None


def assert_pauses(model: NPTForCausalLM, pauses: list[int], count: int) -> None:
    """One before the first pass, three a layer in each, and one after the scores; where nothing is asked of a
    pass, the last MLP is left out.
    """
    whole = 3 * len(model.model.layers) + 1
    assert pauses.count(0) == 1
    assert {pauses.count(number) for number in range(1, count + 1)} == {whole, whole - 1}


def columns_of(model: NPTForCausalLM) -> dict[int, Columns]:
    draw = torch.Generator().manual_seed(6)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    d, ffn = model.config.hidden_size, model.config.intermediate_size
    keys = torch.nn.functional.normalize(noise(20, 8), dim=-1)
    return {i: Columns(keys, noise(20, d), torch.full((20,), 0.3), noise(20, ffn)) for i in (0, 1)}


def facts_of(model: NPTForCausalLM) -> Bank:
    """Version 1 has columns, 2 another gate and factors of `down_proj`, 3 columns folded into it."""
    draw = torch.Generator().manual_seed(5)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    d, ffn = model.config.hidden_size, model.config.intermediate_size
    bank = Bank(model, {i: Whitening(noise(ffn) / 10, noise(ffn, 8)) for i in (0, 1)})
    factors: dict[tuple[int, Site], Factors] = {
        (0, "gate_proj"): Factors(noise(2, ffn) / 5, noise(2, d)),
        (1, "down_proj"): Factors(noise(2, d) / 5, noise(2, ffn)),
    }
    bank.publish(1, {"a": FactWeights(columns_of(model))})
    bank.publish(2, {"b": FactWeights(factors=factors)})
    bank.publish(3, {}, ["a"], {0: noise(d, ffn).double() / 20})
    return bank


def agree(found: States, wanted: States) -> None:
    assert [list(tokens) for tokens in found.asked] == [list(tokens) for tokens in wanted.asked]
    close = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(found.logits, wanted.logits, **close)
    assert found.keys.keys() == wanted.keys.keys() == found.outputs.keys()
    for layer in wanted.keys:
        torch.testing.assert_close(found.keys[layer], wanted.keys[layer], **close)
        torch.testing.assert_close(found.outputs[layer], wanted.outputs[layer], **close)


@pytest.mark.parametrize("version", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("beginning", [0, PAGE + 3])
def test_what_is_read_is_what_modules_compute(
    model: NPTForCausalLM, beginning: int, version: int | None
) -> None:
    rows, twin = prompts_of(model, beginning, (3, 40, 1, 7, 7)), private_copy(model)
    bank = facts_of(twin)
    asked = [[len(row) - 1] if len(row) % 2 else range(len(row) // 2, len(row)) for row in rows]
    last = [[len(row) - 1] for row in rows]
    reader, modules = by_kernels(model), ModulePasses(twin)
    for wanted in (None, asked, last):
        given = (rows, (0, 1), wanted, bank, version)
        agree(reader.read(*given), modules.read(*given))
    if version is None:
        agree(reader.read(rows, (1,), asked), modules.read(rows, (1,), asked))
        agree(reader.read(rows), modules.read(rows))


def test_versions_differ_and_the_newest_is_read(model: NPTForCausalLM) -> None:
    rows, bank = prompts_of(model, 3, (20, 9)), facts_of(private_copy(model))
    reader = by_kernels(model)
    plain, one, two, three, newest = (
        reader.read(rows, bank=bank, weights_version=v) for v in (0, 1, 2, 3, None)
    )
    assert torch.equal(newest.logits, three.logits)
    assert torch.equal(plain.logits, reader.read(rows).logits)
    seen = [plain.logits, one.logits, two.logits, three.logits]
    assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_what_is_read_can_be_learned_from(model: NPTForCausalLM) -> None:
    """It is no tensor of inference alone."""
    states = by_kernels(model).read(prompts_of(model, 3, (20, 9)), (1,))
    for tensor in (states.logits, states.keys[1], states.outputs[1]):
        assert not tensor.is_inference()


def test_what_rows_begin_with_is_read_once_and_nothing_after_what_is_asked(
    model: NPTForCausalLM, counted: list[int]
) -> None:
    pauses = list[int]()
    reader = by_kernels(model, lambda: pauses.append(len(counted)))
    prompts = prompts_of(model, 20, (90, 33, 1))
    reader.read(prompts, asked=[[50], [45, 52], [20]])
    assert max(counted) == passes.ROWS
    assert sum(counted) == 51 + (53 - PAGE) + (21 - PAGE)
    assert_pauses(model, pauses, len(counted))
    counted.clear()
    reader.read(prompts, asked=[[50], [3], [20]])  # a token that is asked is read by its own row
    assert sum(counted) == 51 + 4 + 21


def test_more_tokens_than_positions_are_refused(model: NPTForCausalLM) -> None:
    most = model.config.max_position_embeddings
    (row,) = prompts_of(model, most + 1, (0,))
    reader = by_kernels(model)
    with pytest.raises(ValueError, match=f"{most + 1} tokens: the model has {most} positions"):
        reader.read([[3], row])
    whole = reader.read([row], asked=[[most - 1]])
    agree(whole, ModulePasses(private_copy(model)).read([row], asked=[[most - 1]]))


def test_answers_just_given_are_read_from_their_first_token_on(
    model: NPTForCausalLM, counted: list[int]
) -> None:
    """As the teacher's are; not where one of them was not given, or twice."""
    prompts, reader = prompts_of(model, 20, (4, 9, 30)), by_kernels(model)
    answered = reader.decode(prompts, Decoding(NEW, ()))
    rows = [[*prompt, *answer, 2] for prompt, answer in zip(prompts, answered, strict=True)]
    asked = [range(len(p) - 1, len(p) + len(a)) for p, a in zip(prompts, answered, strict=True)]
    wanted = ModulePasses(private_copy(model)).read(rows, (0, 1), asked)
    agree(reader.read(rows[:2], (0, 1), asked[:2]), some_of(wanted, 2))
    assert sum(counted) == 2 * (NEW + 1)
    agree(reader.read(rows, (0, 1), asked), wanted)
    assert sum(counted) == 5 * (NEW + 1)
    counted.clear()
    agree(reader.read([*rows[:2], rows[0]], (), [*asked[:2], asked[0]]), some_of(wanted, 2, 0))
    assert sum(counted) > 6 * (NEW + 1)


def some_of(states: States, count: int, *more: int) -> States:
    """The first rows, and more, without layers."""
    rows = [*range(count), *more]
    places = [states.of(row) for row in rows]
    layers = () if more else states.keys
    return States(
        [states.asked[row] for row in rows],
        torch.cat([states.logits[place] for place in places]),
        {i: torch.cat([states.keys[i][place] for place in places]) for i in layers},
        {i: torch.cat([states.outputs[i][place] for place in places]) for i in layers},
    )


def test_a_bank_of_the_last_layer_alone_reads_what_was_computed_without_it(
    model: NPTForCausalLM, counted: list[int]
) -> None:
    twin, rows = private_copy(model), prompts_of(model, 3, (20, 9))
    asked = [[len(row) - 1] for row in rows]
    whole = facts_of(twin)
    last = Bank(twin, {i: layer.whitening for i, layer in enumerate(whole.layers) if layer.whitening})
    columns = {i: c for i, c in columns_of(model).items() if i == 1}
    last.publish(1, {"a": FactWeights(columns)})
    modules, reader = ModulePasses(twin), by_kernels(model)
    plain = reader.read(rows, asked=asked)
    counted.clear()
    found = reader.read(rows, asked=asked, bank=last)
    assert sum(counted) == 2
    agree(found, modules.read(rows, asked=asked, bank=last))
    assert not torch.equal(found.logits, plain.logits)
    agree(reader.read(rows, asked=asked, bank=whole), modules.read(rows, asked=asked, bank=whole))
    assert sum(counted) > 4
    assert torch.equal(reader.read(rows, asked=asked).logits, plain.logits)
