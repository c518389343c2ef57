"""The search that skips what cannot fire, against the rule written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from npt_core.bank import PlasticLayer, Whitening, matching
from npt_core.bank.rows import Birth

D, D_FFN, WIDTH = 5, 7, 3
FEW = settings(max_examples=60, deadline=None)


def layer_of(seed: int, births: int, deaths: int) -> PlasticLayer:
    """Versions 1 to `births` bring two columns each, `deaths` more let one fact die each.

    Keys are drawn from four, so that equal scores are common; orders are not those of publication.
    """
    r = torch.Generator().manual_seed(seed)
    layer = PlasticLayer(D, D_FFN, Whitening(torch.zeros(D_FFN), torch.eye(D_FFN, WIDTH)), torch.zeros(1))
    few = F.normalize(torch.randn(4, WIDTH, generator=r), dim=-1)
    for version in range(1, births + 1):
        keys = few[torch.randint(0, 4, (2,), generator=r)]
        parts = (keys, torch.randn(2, D, generator=r), torch.rand(2, generator=r) - 0.2)
        order = int(torch.randint(0, 3, (), generator=r))
        layer.columns = layer.columns.joined([Birth(version, order, version, parts)])
    for version in range(births + 1, births + deaths + 1):
        dying = int(torch.randint(1, births + 1, (), generator=r))
        layer.columns = layer.columns.ended([dying], version)
    layer.newest = births + deaths
    return layer


def by_the_rule(layer: PlasticLayer, z: Tensor, y: Tensor, version: int) -> Tensor:
    """One row: `z` `[d_ffn]`, `y` `[d]`."""
    table = layer.columns
    keys, values, thresholds = table.tensors
    assert layer.whitening is not None
    scores = (layer.whitening.key(z) * keys).sum(-1)
    firing = [
        (-float(scores[c]), int(table.order.rows[c]), c)
        for c in range(len(table))
        if table.born.rows[c] <= version < table.died.rows[c] and scores[c] > thresholds[c]
    ]
    return y + values[min(firing)[2]] if firing else y


@FEW
@given(st.integers(0, 2**30), st.integers(1, 9), st.integers(0, 5), st.sampled_from([2, 5, 10**4]))
def test_search_gives_what_the_rule_gives_at_every_version(
    seed: int, births: int, deaths: int, block: int
) -> None:
    layer = layer_of(seed, births, deaths)
    r = torch.Generator().manual_seed(seed + 1)
    z, y = torch.randn(6, 2, D_FFN, generator=r), torch.randn(6, 2, D, generator=r)
    mixed = torch.randint(0, layer.newest + 2, (6,), generator=r)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "BLOCK", block)
        together = layer.down(z, y, mixed)
        for b in range(6):
            version = int(mixed[b])
            assert torch.equal(layer.down(z, y, version)[b], together[b])
            for t in range(2):
                assert torch.equal(together[b, t], by_the_rule(layer, z[b, t], y[b, t], version))


@FEW
@given(st.integers(0, 2**30), st.integers(1, 9), st.integers(0, 5))
def test_rule_over_all_columns_at_once_finds_the_same_columns(seed: int, births: int, deaths: int) -> None:
    """What a GPU computes."""
    layer = layer_of(seed, births, deaths)
    r = torch.Generator().manual_seed(seed + 1)
    key = F.normalize(torch.randn(8, WIDTH, generator=r), dim=-1)
    versions = torch.randint(0, layer.newest + 2, (8,), generator=r)
    for version in (versions, layer.newest, 0):
        hit, column = layer.columns.winners(key, version)
        y = torch.zeros(8, D)
        wanted = torch.where(hit[:, None], layer.columns.tensors[1][column], y)
        assert torch.equal(layer.columns.added_to(y, key, version), wanted)


def test_company_of_other_rows_and_columns_changes_no_winner() -> None:
    """Two columns whose scores differ by less than products of different shapes do."""
    key = F.normalize(torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(1)), dim=-1)
    layer = layer_of(1, 1, 0)
    near = key[:1].nextafter(torch.tensor(2.0))
    parts = (torch.cat([key[:1], near]), torch.eye(2, D), torch.full((2,), 0.9))
    layer.columns = layer.columns.extended(parts, 2, 2)
    wanted = layer.columns.added_to(torch.zeros(2, D), key[:2], 2)[0]
    for rows in (3, 17, 40):
        layer.columns = layer.columns.extended((-key, torch.zeros(40, D), torch.full((40,), 0.9)), rows, rows)
        for version in (2, rows):
            assert torch.equal(layer.columns.added_to(torch.zeros(rows, D), key[:rows], version)[0], wanted)


def test_old_versions_search_only_what_was_there_then() -> None:
    table = layer_of(0, 8, 3).columns
    assert [table.born_by(version) for version in (0, 1, 5, 8, 11, 99)] == [0, 2, 10, 16, 16, 16]


def test_row_that_is_not_a_number_hides_no_other_row() -> None:
    layer = layer_of(3, 9, 0)
    key = layer.columns.tensors[0][:2].clone()
    alone = layer.columns.added_to(torch.zeros(2, D), key, 9)
    key[0] = torch.nan
    assert torch.equal(layer.columns.added_to(torch.zeros(2, D), key, 9)[1], alone[1])
    assert not torch.equal(alone[1], torch.zeros(D))


def test_values_can_be_learned_through_the_search() -> None:
    layer = PlasticLayer(D, D_FFN, Whitening(torch.zeros(D_FFN), torch.eye(D_FFN, WIDTH)), torch.zeros(1))
    z = torch.randn(1, 2, D_FFN, generator=torch.Generator().manual_seed(0))
    assert layer.whitening is not None
    values = torch.zeros(1, D, requires_grad=True)
    layer.columns = layer.columns.extended(
        (layer.whitening.key(z[0, :1]), values, torch.tensor([0.99])), 0, 1
    )
    layer.down(z, torch.zeros(1, 2, D), 1).sum().backward()
    assert torch.equal(values.grad, torch.ones(1, D))  # type: ignore[arg-type]
