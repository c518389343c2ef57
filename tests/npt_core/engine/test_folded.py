"""One batch reads several generations of `down_proj`, and every answer is that of a process alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from npt_core.bank import Bank, Columns, FactWeights, Whitening
from npt_core.consolidation.ridge import apply_fold
from npt_core.engine import (
    Engine,
    EngineConfig,
    GenerationRequest,
    Runner,
    SamplingParams,
    Sequence,
    Span,
    Stream,
)
from npt_core.engine.background import Background
from npt_core.engine.forward import nothing
from npt_core.model import NPTForCausalLM
from tests.npt_core.engine.test_runner import Recording, heard, prompts, wide

D, D_FFN, WIDTH = 320, 960, 16
Logits = dict[tuple[tuple[int, ...], int], list[Tensor]]


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def deltas(seed: int, *layers: int) -> dict[int, Tensor]:
    return {i: noise(seed + i, D, D_FFN).double() / 30 for i in layers}


@cache
def fact() -> FactWeights:
    keys = F.normalize(noise(1, 40, WIDTH), dim=-1)
    return FactWeights({1: Columns(keys, noise(2, 40, D), torch.full((40,), 0.4), noise(3, 40, 1))})


def bank_of(model: NPTForCausalLM) -> Bank:
    return Bank(model, {1: Whitening(noise(4, D_FFN) / 10, noise(5, D_FFN, WIDTH))}).attach()


def teach(bank: Bank) -> None:
    bank.publish(1, {"fact": fact()})


def fold_first(bank: Bank) -> None:
    bank.publish(2, {}, ["fact"], deltas(10, 0, 1))


def fold_again(bank: Bank) -> None:
    bank.publish(3, {}, deltas=deltas(20, 1))


def roll_back(bank: Bank) -> None:
    bank.publish(4, {"fact": fact()}, deltas={})


HISTORY: list[Callable[[Bank], None]] = [teach, fold_first, fold_again, roll_back]


def folded_alone(added: dict[int, Tensor]) -> NPTForCausalLM:
    """A model whose own weights hold the fold."""
    model = wide()
    apply_fold(model, added, {i: model.model.layers[i].mlp.down_proj.weight.clone() for i in added})
    return model


def answers(runner: Runner, bank: Bank, versions: list[int | None], running: int) -> Logits:
    """Logits of every token of every prompt, by prompt and version."""
    recording = Recording(runner)
    engine = Engine(recording, bank, (), EngineConfig(max_running=running, prefix_cache=False))  # type: ignore[arg-type]
    new = SamplingParams(max_new_tokens=8)
    asked = [(prompt, version) for prompt in prompts(6, 60) for version in versions]
    for stream in [engine.submit(GenerationRequest(prompt, new, version)) for prompt, version in asked]:
        heard(stream)
    engine.close()
    return recording.logits


def same(found: Logits, wanted: Logits, version: int) -> bool:
    """Whether the answers at `version` are, bit for bit, those of another process at its own version."""
    pairs = [(rows, found[prompt, version]) for (prompt, _), rows in wanted.items()]
    return all(torch.equal(torch.stack(a), torch.stack(b)) for a, b in pairs)


def test_generations_mixed_in_a_batch_are_bit_for_bit_models_that_have_each_alone() -> None:
    model = wide()
    bank = bank_of(model)
    for change in HISTORY:
        change(bank)
    mixed = answers(Runner(model, 400), bank, [0, 1, 2, 3, 4], 32)
    for version, added in ((0, {}), (2, deltas(10, 0, 1)), (3, deltas(20, 1))):
        alone = folded_alone(added)
        assert same(mixed, answers(Runner(alone, 64), bank_of(alone), [None], 1), version), version
    taught = wide()
    teach(other := bank_of(taught))
    wanted = answers(Runner(taught, 64), other, [None], 1)
    assert same(mixed, wanted, 1)
    assert same(mixed, wanted, 4)
    different = {float(torch.stack(rows).double().sum()) for rows in mixed.values()}
    assert len(different) > 6 * 3  # Folds change every answer, and the fact changes some.


def test_process_that_has_only_the_newest_version_gives_its_bits() -> None:
    """As after a restart, and in the one that went through it all once the rest was retired."""
    model, later = wide(), wide()
    bank, fresh = bank_of(model), bank_of(later)
    for change in HISTORY[:3]:
        change(bank)
    bank.retire(3)
    fold_again(fresh)
    assert same(answers(Runner(model, 200), bank, [None], 8), answers(Runner(later, 64), fresh, [3], 1), 3)


def test_running_request_keeps_its_generation_while_a_fold_is_published() -> None:
    model = wide()
    bank = bank_of(model)
    teach(bank)
    engine = Engine(Runner(model, 64), bank, ())
    request = GenerationRequest(prompts(1)[0], SamplingParams(max_new_tokens=60))
    before = heard(engine.submit(request))
    stream = engine.submit(request)
    first = next(iter(stream))
    fold_first(bank)
    after = engine.submit(request)
    assert [first.token_id, *heard(stream)] == before  # type: ignore[union-attr]
    assert heard(after) != before
    engine.close()


def test_what_is_published_in_the_middle_of_a_step_changes_no_bit_of_it() -> None:
    model = wide()
    bank, runner = bank_of(model), Runner(model, 16)
    teach(bank)

    def logits(between: Callable[[], None]) -> Tensor:
        sequence = Sequence(GenerationRequest(prompts(1, 60)[0]), Stream(1, 1), 0, 80)
        sequence.pages = list(range(5))
        return runner.run([Span(sequence, 0, sequence.prompt_length)], between)

    background, calls = Background(0.5, lambda: False), [0]

    def publish() -> None:
        number, calls[0] = divmod(calls[0], 2)[0], calls[0] + 1
        if number < len(HISTORY) - 1 and number == bank.version - 1:
            background.add(partial(HISTORY[number + 1], bank), urgent=True)
        background.attend()

    alone = logits(nothing)
    assert torch.equal(logits(publish), alone)
    assert bank.version == len(HISTORY)
    assert torch.equal(logits(nothing), alone)
    bank.publish(5, {}, ["fact"])  # what was published within inference mode can be changed
