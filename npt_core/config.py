"""Which layers of a Llama are Neuro-Plastic, and how their adapters look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, Literal, get_args

from transformers import LlamaConfig

NPTVariant = Literal["v1", "v2"]
LayerVariant = Literal["llama", "v1", "v2"]
ModulationType = Literal["additive", "multiplicative", "both"]
LayerSpec = Literal["all", "upper_half"] | Sequence[int]

VARIANTS: tuple[str, ...] = get_args(NPTVariant)
MODULATION_TYPES: tuple[str, ...] = get_args(ModulationType)

_ADAPTER_TP_PLAN = {
    # `A` stays whole on every rank: its rank-r output feeds both columnwise halves.
    "layers.*.mlp.adapter.B_add": "colwise",
    "layers.*.mlp.adapter.B_mult": "colwise",
}


class NPTConfig(LlamaConfig):
    """A `LlamaConfig` plus the choice of layers and the shape of the adapters.

    `npt_layers` maps a layer index (as a string, because JSON keeps only those) to its
    variant; a layer that is absent is a plain Llama layer. Integer keys are accepted and
    turned into strings.

    Raises:
        ValueError: an index outside `0 .. num_hidden_layers - 1`, an unknown variant or
            modulation type, or `adapter_rank < 1`.
    """

    model_type = "npt_llama"
    base_model_tp_plan = {**LlamaConfig.base_model_tp_plan, **_ADAPTER_TP_PLAN}

    npt_layers: dict[str, str] = field(default_factory=dict)
    adapter_rank: int = 64
    modulation_type: str = "both"

    def __post_init__(self, **kwargs: Any) -> None:
        self.npt_layers = _normalised_layers(self.npt_layers or {}, self.num_hidden_layers)
        _check_rank(self.adapter_rank)
        _check_modulation_type(self.modulation_type)
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    def variant(self, layer: int) -> LayerVariant:
        """The variant of one layer; `"llama"` where no adapter is configured."""
        if not 0 <= layer < self.num_hidden_layers:
            raise ValueError(_unknown_layer(layer, self.num_hidden_layers))
        found: LayerVariant = self.npt_layers.get(str(layer), "llama")  # type: ignore[assignment]
        return found


def resolve_layers(spec: LayerSpec, num_layers: int) -> tuple[int, ...]:
    """Layer indices, ascending, that `spec` names in a model of `num_layers` layers.

    `"all"` is every layer, `"upper_half"` the layers from `num_layers // 2` up.

    Raises:
        ValueError: an unknown name, an empty sequence, an index that is not an integer, is
            out of range or is given twice, or `num_layers < 1`.
    """
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    if isinstance(spec, str):
        return _resolve_name(spec, num_layers)
    indices = [_checked_index(index, num_layers) for index in spec]
    if not indices:
        raise ValueError("no layers given: name at least one, or use 'all' or 'upper_half'")
    twice = sorted({index for index in indices if indices.count(index) > 1})
    if twice:
        raise ValueError(f"layers given twice: {twice}")
    return tuple(sorted(indices))


def _resolve_name(name: str, num_layers: int) -> tuple[int, ...]:
    if name == "all":
        return tuple(range(num_layers))
    if name == "upper_half":
        return tuple(range(num_layers // 2, num_layers))
    raise ValueError(f"unknown layer selection {name!r}: use 'all', 'upper_half' or a list of indices")


def _checked_index(index: object, num_layers: int) -> int:
    # bool is an int in Python, but True as a layer index is always a mistake.
    if not isinstance(index, int) or isinstance(index, bool):
        raise ValueError(f"layer index must be an integer, got {index!r}")
    if not 0 <= index < num_layers:
        raise ValueError(_unknown_layer(index, num_layers))
    return index


def _normalised_layers(layers: Mapping[Any, Any], num_layers: int) -> dict[str, str]:
    if not isinstance(layers, Mapping):
        raise ValueError(f"npt_layers must map layer index to variant, got {type(layers).__name__}")
    found: dict[int, str] = {}
    for key, variant in layers.items():
        index = _checked_index(_parse_index(key), num_layers)
        if variant not in VARIANTS:
            raise ValueError(f"unknown variant {variant!r} for layer {index}: use one of {list(VARIANTS)}")
        if index in found:
            raise ValueError(f"npt_layers names layer {index} twice")
        found[index] = variant
    return {str(index): found[index] for index in sorted(found)}


def _parse_index(key: object) -> object:
    return int(key) if isinstance(key, str) and key.strip().isdecimal() else key


def _check_rank(rank: object) -> None:
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ValueError(f"adapter_rank must be an integer of at least 1, got {rank!r}")


def _check_modulation_type(name: object) -> None:
    if name not in MODULATION_TYPES:
        raise ValueError(f"unknown modulation_type {name!r}: use one of {list(MODULATION_TYPES)}")


def _unknown_layer(index: int, num_layers: int) -> str:
    return f"unknown layer {index}: the model has layers 0 to {num_layers - 1}"
