from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from npt_core.config import NPTConfig, resolve_layers

SIZES = st.integers(1, 200)


@given(SIZES)
def test_all_names_every_layer(size: int) -> None:
    assert resolve_layers("all", size) == tuple(range(size))


@given(SIZES)
def test_upper_half_is_the_top_and_at_least_half(size: int) -> None:
    layers = resolve_layers("upper_half", size)
    assert layers == tuple(range(size - len(layers), size))
    assert len(layers) == (size + 1) // 2


@given(SIZES.flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))))
def test_a_list_comes_back_sorted_and_resolving_again_changes_nothing(
    case: tuple[int, set[int]],
) -> None:
    size, wanted = case
    layers = resolve_layers(list(wanted), size)
    assert set(layers) == wanted
    assert list(layers) == sorted(layers)
    assert resolve_layers(layers, size) == layers


@given(SIZES, st.integers())
def test_an_index_is_accepted_exactly_if_the_layer_exists(size: int, index: int) -> None:
    if 0 <= index < size:
        assert resolve_layers([index], size) == (index,)
    else:
        with pytest.raises(ValueError, match=f"unknown layer {index}: .* 0 to {size - 1}"):
            resolve_layers([index], size)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lower_half", "unknown layer selection 'lower_half'"),
        ([], "no layers given"),
        ([1, 2, 1], r"twice: \[1\]"),
        ([True], "must be an integer, got True"),
        ([1.0], "must be an integer, got 1.0"),
        (["1"], "must be an integer, got '1'"),
    ],
)
def test_a_wrong_selection_is_named(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_layers(spec, 4)


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        resolve_layers("all", 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"npt_layers": {"4": "v1"}}, "unknown layer 4"),
        ({"npt_layers": {"-1": "v1"}}, "must be an integer, got '-1'"),
        ({"npt_layers": {"x": "v1"}}, "must be an integer, got 'x'"),
        ({"npt_layers": {"0": "v3"}}, "unknown variant 'v3' for layer 0"),
        ({"npt_layers": {"0": "llama"}}, "unknown variant 'llama'"),
        ({"npt_layers": {"1": "v1", 1: "v2"}}, "layer 1 twice"),
        ({"npt_layers": ["v1"]}, "must map"),
        ({"adapter_rank": 0}, "adapter_rank"),
        ({"adapter_rank": 2.5}, "adapter_rank"),
        ({"adapter_rank": True}, "adapter_rank"),
        ({"modulation_type": "divisive"}, "unknown modulation_type 'divisive'"),
    ],
)
def test_a_wrong_value_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NPTConfig(num_hidden_layers=4, **values)


def test_layers_that_are_not_named_are_plain() -> None:
    config = NPTConfig(num_hidden_layers=3, npt_layers={2: "v2", "0": "v1"})
    assert [config.variant(layer) for layer in range(3)] == ["v1", "llama", "v2"]
    assert config.npt_layers == {"0": "v1", "2": "v2"}
    with pytest.raises(ValueError, match="unknown layer 3"):
        config.variant(3)


def test_two_configs_share_no_layers() -> None:
    NPTConfig().npt_layers["0"] = "v1"
    assert NPTConfig().npt_layers == {}


def test_auto_config_reads_what_was_saved(tmp_path: Path) -> None:
    config = NPTConfig(num_hidden_layers=3, npt_layers={1: "v2"}, adapter_rank=5)
    config.modulation_type = "additive"
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, NPTConfig)
    assert (loaded.npt_layers, loaded.adapter_rank) == ({"1": "v2"}, 5)
    assert loaded.modulation_type == "additive"


def test_adapter_heads_are_split_like_the_gate() -> None:
    plan = NPTConfig.base_model_tp_plan
    assert plan["layers.*.mlp.adapter.B_add"] == plan["layers.*.mlp.gate_proj"] == "colwise"
