from __future__ import annotations

import threading
from dataclasses import replace
from functools import cache
from itertools import count
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from npt_core.bank import (
    Bank,
    BankError,
    Columns,
    Factors,
    FactWeights,
    PlasticLayer,
    Whitening,
)
from npt_core.model import NPTForCausalLM
from tests.npt_core.tiny import new_npt

D, D_FFN, WIDTH, VOCABULARY = 32, 48, 8, 400
NAMES = "ABCDEF"
FEW = settings(max_examples=15, deadline=None)


@cache
def model() -> NPTForCausalLM:
    return new_npt()


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@cache
def whitening() -> dict[int, Whitening]:
    return {i: Whitening(noise(i, D_FFN) / 10, noise(10 + i, D_FFN, WIDTH)) for i in (0, 1)}


@cache
def fact(name: str) -> FactWeights:
    """Columns that fire on many tokens and factors on both sites, in both layers."""
    seed = 100 * ord(name)
    columns = {
        i: Columns(
            F.normalize(noise(seed + i, 3, WIDTH), dim=-1),
            noise(seed + 2 + i, 3, D),
            torch.full((3,), 0.3),
            noise(seed + 4 + i, 3, D_FFN).half(),
        )
        for i in (0, 1)
    }
    return FactWeights(
        columns,
        {
            (0, "gate_proj"): Factors(noise(seed + 6, 2, D_FFN), noise(seed + 7, 2, D) / 10),
            (1, "down_proj"): Factors(noise(seed + 8, 2, D), noise(seed + 9, 2, D_FFN) / 10),
        },
    )


def new_bank() -> Bank:
    return Bank(model(), whitening())


def bank_of(*names: str) -> Bank:
    """A bank that was given these facts at once, and nothing else ever."""
    bank = new_bank()
    bank.publish(1, {name: fact(name) for name in names})
    return bank


@cache
def inputs() -> Tensor:
    return torch.randint(3, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def logits(bank: Bank, version: int | Tensor | None = None) -> Tensor:
    bank.attach()
    return model()(input_ids=inputs(), use_cache=False, weights_version=version).logits


@cache
def logits_of(names: frozenset[str]) -> Tensor:
    """The oracle: a model that holds these facts and never had another one."""
    return logits(bank_of(*sorted(names)))


class Operations(TorchDispatchMode):
    """So many operations on tensors are `allowed`; the next one fails."""

    def __init__(self, allowed: int) -> None:
        super().__init__()
        self.left = allowed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.left:
            raise torch.OutOfMemoryError
        self.left -= 1
        return func(*args, **(kwargs or {}))


# A history: at every version some facts change sides (born if dead, dead if alive).
histories = st.lists(st.sets(st.sampled_from(NAMES), min_size=1), min_size=1, max_size=6)


def play(history: list[set[str]]) -> tuple[Bank, dict[int, frozenset[str]]]:
    """A bank with this history, and the facts alive at every version by plain sets."""
    bank, alive, seen = new_bank(), frozenset[str](), {0: frozenset[str]()}
    for step, changed in enumerate(history, start=1):
        version = 3 * step  # versions are newer, not consecutive
        deaths = sorted(alive & changed)
        bank.publish(version, {n: fact(n) for n in sorted(changed - alive)}, deaths)
        alive ^= changed
        seen |= dict.fromkeys((version - 2, version - 1), seen[version - 3]) | {version: alive}
    return bank, seen


@FEW
@given(histories)
def test_every_version_sees_the_facts_alive_at_it(history: list[set[str]]) -> None:
    bank, seen = play(history)
    for version, alive in seen.items():
        assert bank.num_columns(version) == sum(fact(n).num_columns for n in alive)
    assert bank.facts == seen[bank.version]
    with Operations(allowed=0):  # asked by those who must not compute
        assert bank.num_columns() == sum(fact(n).num_columns for n in bank.facts)


@FEW
@given(histories)
def test_every_version_gives_the_bits_of_a_model_that_never_had_other_facts(
    history: list[set[str]],
) -> None:
    bank, seen = play(history)
    for version, alive in seen.items():
        assert torch.equal(logits(bank, version), logits_of(alive))
    assert torch.equal(logits(bank), logits_of(seen[bank.version]))


@FEW
@given(histories, st.data())
def test_versions_mixed_in_one_batch_equal_each_version_alone(
    history: list[set[str]], data: st.DataObject
) -> None:
    bank, seen = play(history)
    version = st.sampled_from(sorted(seen))
    mixed = [data.draw(version) for _ in range(len(inputs()))]
    together = logits(bank, torch.tensor(mixed))
    for row, at in enumerate(mixed):
        assert torch.equal(together[row], logits(bank, at)[row])


@FEW
@given(st.permutations(NAMES))
def test_the_order_of_publication_does_not_change_the_logits(order: list[str]) -> None:
    bank = new_bank()
    for version, name in enumerate(order, start=1):
        bank.publish(version, {name: fact(name)})
    assert torch.equal(logits(bank), logits_of(frozenset(NAMES)))


@FEW
@given(st.permutations("ABC"))
def test_equal_keys_of_several_facts_give_the_same_winner_in_any_order(order: list[str]) -> None:
    key = fact("A").columns[1].keys
    rivals = {n: replace(fact(n).columns[1], keys=key) for n in "ABC"}
    bank, sorted_bank = new_bank(), new_bank()
    for version, name in enumerate(order, start=1):
        bank.publish(version, {name: FactWeights({1: rivals[name]})})
    sorted_bank.publish(1, {name: FactWeights({1: rivals[name]}) for name in "ABC"})
    assert torch.equal(logits(bank), logits(sorted_bank))


def test_facts_without_effect_would_prove_nothing() -> None:
    base = logits_of(frozenset())
    for name in NAMES:
        only_columns, only_factors = new_bank(), new_bank()
        only_columns.publish(1, {name: FactWeights(columns=fact(name).columns)})
        only_factors.publish(1, {name: FactWeights(factors=fact(name).factors)})
        assert not torch.equal(logits(only_columns), base)
        assert not torch.equal(logits(only_factors), base)


def test_a_rolled_back_fact_returns_bit_for_bit() -> None:
    bank = bank_of("A", "B")
    bank.publish(2, {}, ["A"])
    bank.publish(3, {"A": fact("A")}, [])
    assert torch.equal(logits(bank), logits_of(frozenset("AB")))
    assert torch.equal(logits(bank, 2), logits_of(frozenset("B")))


def test_a_fact_may_be_replaced_within_one_version() -> None:
    bank = bank_of("A")
    bank.publish(2, {"A": fact("B")}, ["A"])
    assert bank.facts == {"A"}
    assert torch.equal(logits(bank), logits_of(frozenset("B")))
    assert torch.equal(logits(bank, 1), logits_of(frozenset("A")))


def broken(**parts: Tensor) -> FactWeights:
    return FactWeights({0: replace(fact("C").columns[0], **parts)})


@pytest.mark.parametrize(
    ("version", "births", "deaths", "message"),
    [
        (1, {"C": fact("C")}, [], "not newer"),
        (0, {"C": fact("C")}, [], "not newer"),
        (2, {"C": fact("C")}, ["D"], "not alive"),
        (2, {"A": fact("A")}, [], "already alive"),
        (2, {"C": fact("C"), "D": broken(keys=torch.zeros(3, 5))}, ["A"], "do not fit"),
        (2, {"C": broken(values=torch.zeros(3, D + 1))}, [], "do not fit"),
        (2, {"C": broken(thresholds=torch.zeros(3, 1))}, [], "do not fit"),
        (2, {"C": broken(keys=torch.zeros(2, WIDTH))}, [], "do not fit"),
        (2, {"C": FactWeights({7: fact("C").columns[0]})}, [], "layer 7"),
        (2, {"C": FactWeights(factors={(7, "gate_proj"): fact("C").factors[0, "gate_proj"]})}, [],
         "no layer 7"),
        (2, {"C": FactWeights(factors={(0, "down_proj"): fact("C").factors[0, "gate_proj"]})}, [],
         "do not fit"),
        (2, {"C": FactWeights(factors={(0, "gate_proj"): Factors(torch.zeros(2, D_FFN),
                                                                 torch.zeros(1, D))})}, [],
         "do not fit"),
    ],
)  # fmt: skip
def test_a_refused_publication_changes_nothing(
    version: int, births: dict[str, FactWeights], deaths: list[str], message: str
) -> None:
    bank = bank_of("A", "B")
    before, tables = logits(bank), [(layer.columns, layer.factors) for layer in bank.layers]
    with pytest.raises(BankError, match=message):
        bank.publish(version, births, deaths)
    assert bank.version == 1
    assert bank.facts == {"A", "B"}
    assert [(layer.columns, layer.factors) for layer in bank.layers] == tables
    assert torch.equal(logits(bank), before)
    bank.publish(2, {"C": fact("C")})
    assert torch.equal(logits(bank), logits_of(frozenset("ABC")))


def test_publication_that_fails_midway_changes_nothing_and_may_be_made_again() -> None:
    """Wherever memory runs out. Layers were changed one by one: rows stood there twice."""
    delta = {1: noise(7, D, D_FFN) / 10}
    bank, other = bank_of("A"), bank_of("A")
    before = [layer.tables for layer in bank.layers]
    births, failures = {"A": fact("A"), "B": fact("B")}, count()
    for allowed in failures:
        try:
            with Operations(allowed):
                bank.publish(2, births, ["A"], delta)
            break
        except torch.OutOfMemoryError:
            found = [layer.tables for layer in bank.layers]
            assert all(a is b for x, y in zip(found, before, strict=True) for a, b in zip(x, y, strict=True))
            assert (bank.version, bank.facts) == (1, {"A"})
            assert {layer.newest for layer in bank.layers} == {1}
    assert next(failures) > 20
    other.publish(2, births, ["A"], delta)
    for version in (1, 2):
        assert torch.equal(logits(bank, version), logits(other, version))
        assert bank.num_columns(version) == other.num_columns(version)


@FEW
@given(st.lists(st.integers(1, 3), min_size=len(NAMES), max_size=len(NAMES)))
def test_versions_that_are_published_at_once_are_those_published_one_by_one(steps: list[int]) -> None:
    versions = [1 + sum(steps[:i]) for i in range(len(NAMES))]
    births = {version: {name: fact(name)} for version, name in zip(versions, NAMES, strict=True)}
    single, together = bank_of("X"), bank_of("X")
    for version, facts in births.items():
        single.publish(version + 1, facts)
    together.publish_all({version + 1: facts for version, facts in births.items()})
    for bank in (single, together):
        bank.publish(bank.version + 1, {}, ["B"])
    assert (together.version, together.facts) == (single.version, single.facts)
    for version in range(1, single.version + 1):
        assert torch.equal(logits(together, version), logits(single, version))


@pytest.mark.parametrize(
    ("births", "message"),
    [
        ({2: {"C": fact("C")}, 1: {"D": fact("D")}}, "not newer"),
        ({1: {"C": fact("C")}}, "not newer"),
        ({2: {"C": fact("C")}, 3: {"C": fact("C")}}, "already alive"),
        ({2: {"C": fact("C")}, 3: {"A": fact("A")}}, "already alive"),
        ({2: {"C": fact("C")}, 3: {"D": broken(keys=torch.zeros(3, 5))}}, "do not fit"),
    ],
)
def test_of_versions_at_once_all_are_published_or_none(
    births: dict[int, dict[str, FactWeights]], message: str
) -> None:
    bank = bank_of("A", "B")
    before = logits(bank)
    with pytest.raises(BankError, match=message):
        bank.publish_all(births)
    assert (bank.version, bank.facts) == (1, {"A", "B"})
    assert torch.equal(logits(bank), before)


def test_a_layer_without_a_key_space_takes_no_columns() -> None:
    bank = Bank(model(), {1: whitening()[1]})
    with pytest.raises(BankError, match="layer 0 holds no columns"):
        bank.publish(1, {"A": fact("A")})


@FEW
@given(st.integers(0, 2**30), st.integers(1, 12))
def test_the_best_visible_column_above_its_threshold_adds_its_value(seed: int, count: int) -> None:
    layer = PlasticLayer(D, D_FFN, whitening()[0], torch.zeros(1))
    r = torch.Generator().manual_seed(seed)
    keys = F.normalize(torch.randn(count, WIDTH, generator=r), dim=-1)
    values = torch.randn(count, D, generator=r)
    thresholds = torch.rand(count, generator=r) - 0.3
    owners = sorted(torch.randint(0, 3, (count,), generator=r).tolist())
    for row, owner in enumerate(owners):  # owner k is born at version k
        part = (keys[row, None], values[row, None], thresholds[row, None])
        layer.columns = layer.columns.extended(part, owner, owner)
    z, y = torch.randn(2, 5, D_FFN, generator=r), torch.randn(2, 5, D, generator=r)
    out = layer.down(z, y, 1)
    for b, t in ((b, t) for b in range(2) for t in range(5)):
        scores = keys @ whitening()[0].key(z[b, t])
        firing = [(float(scores[k]), k) for k in range(count) if owners[k] <= 1 and scores[k] > thresholds[k]]
        wanted = y[b, t] + values[max(firing)[1]] if firing else y[b, t]
        assert torch.equal(out[b, t], wanted)


@torch.no_grad()
def test_factors_equal_weights_that_hold_the_update() -> None:
    factors = FactWeights(factors=fact("A").factors)
    bank = new_bank()
    bank.publish(1, {"A": factors})
    wanted = new_npt()
    for (index, site), update in factors.factors.items():
        weight = getattr(wanted.model.layers[index].mlp, site).weight
        weight += update.left.T @ update.right
    there = wanted(input_ids=inputs(), use_cache=False).logits
    torch.testing.assert_close(logits(bank), there, atol=2e-4, rtol=1e-4)


def test_tensors_carry_a_fact_unchanged() -> None:
    tensors = fact("A").to_tensors()
    again = FactWeights.from_tensors(tensors)
    assert {n: t.dtype for n, t in again.to_tensors().items()} == {n: t.dtype for n, t in tensors.items()}
    assert all(torch.equal(t, tensors[n]) for n, t in again.to_tensors().items())
    assert again.columns.keys() == fact("A").columns.keys()
    assert again.factors.keys() == fact("A").factors.keys()


@pytest.mark.parametrize("name", ["other", "columns.x.keys", "factors.0.up_proj.left"])
def test_unknown_tensors_are_refused(name: str) -> None:
    with pytest.raises(BankError, match="unknown tensor"):
        FactWeights.from_tensors(fact("A").to_tensors() | {name: torch.zeros(1)})


@pytest.mark.parametrize("name", ["columns.0.thresholds", "factors.1.down_proj.right"])
def test_incomplete_tensors_are_refused(name: str) -> None:
    tensors = fact("A").to_tensors()
    del tensors[name]
    with pytest.raises(BankError, match="incomplete"):
        FactWeights.from_tensors(tensors)


def test_a_reader_with_a_pinned_version_sees_the_same_while_facts_are_published() -> None:
    bank = bank_of("A", "B").attach()
    wanted, stop, wrong = logits(bank, 1), threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            if not torch.equal(logits(bank, 1), wanted):
                wrong.append(bank.version)

    reader = threading.Thread(target=read)
    reader.start()
    for version in range(2, 60):
        turn = version % 2
        births, deaths = ({}, "AB") if turn == 0 else ({n: fact(n) for n in "AB"}, "")
        bank.publish(version, births, list(deaths))
    stop.set()
    reader.join()
    assert not wrong


def test_a_token_gets_the_same_bits_of_factors_whatever_stands_beside_it() -> None:
    d_ffn, d = 960, 320  # at these widths MKL takes other kernels for other numbers of rows
    layer = PlasticLayer(d, d_ffn, None, torch.zeros(1))
    factors = layer.factors["down_proj"].extended([noise(1, 3, d), noise(2, 3, d_ffn)], 0, 1)
    layer.factors["down_proj"], layer.newest = factors, 1
    z, y = noise(3, 300, 1, d_ffn), torch.zeros(300, 1, d)
    together = layer.down(z, y, 1)
    for rows in (1, 2, 7, 16, 100, 128, 129):
        assert torch.equal(layer.down(z[:rows], y[:rows], 1), together[:rows])
