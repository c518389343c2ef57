from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from npt_core import checkpoint
from npt_core.checkpoint import (
    CheckpointError,
    CheckpointNotFound,
    CorruptedWeights,
    InvalidConfig,
    MissingConfig,
    MissingWeights,
    ShapeMismatch,
    UnexpectedWeights,
    UnsupportedModelType,
    load_checkpoint,
)
from tests.npt_core.helpers import mixed_npt

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(llama: LlamaForCausalLM, tmp_path: Path) -> Path:
    llama.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(llama: LlamaForCausalLM, tmp_path: Path) -> Path:
    llama.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    return tmp_path / "sharded"


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit_weights(folder: Path, drop: str | None = None, **added: Tensor) -> None:
    path = folder / "model.safetensors"
    tensors = {name: w for name, w in load_file(path).items() if name != drop}
    save_file({**tensors, **added}, path, metadata={"format": "pt"})


def refused(folder: Path | str, error: type[CheckpointError], message: str) -> None:
    with pytest.raises(error, match=message):
        load_checkpoint(folder)


def test_a_llama_loads_as_plain_layers(folder: Path, llama: LlamaForCausalLM, ids: Tensor) -> None:
    model = load_checkpoint(folder)
    assert model.config.npt_layers == {}
    assert torch.equal(model(ids).logits, llama(ids).logits)


def test_a_name_that_is_neither_directory_nor_hub_id_is_refused(folder: Path) -> None:
    refused(folder / "absent", CheckpointNotFound, "neither a directory nor a hub id")
    refused(folder / "config.json", CheckpointNotFound, "is a file")


def test_a_hub_id_that_cannot_be_fetched_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(checkpoint, "snapshot_download", unreachable)
    refused("owner/name", CheckpointNotFound, "from the hub failed: no connection")


def test_a_hub_id_loads_from_where_the_hub_put_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, llama: LlamaForCausalLM, ids: Tensor
) -> None:
    monkeypatch.setattr(checkpoint, "snapshot_download", lambda *_, **__: str(folder))
    assert torch.equal(load_checkpoint("owner/name")(ids).logits, llama(ids).logits)


def test_a_missing_config_is_named(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, MissingConfig, r"holds no config\.json")


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_config_that_is_no_json_object_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    refused(folder, InvalidConfig, r"config\.json")


@pytest.mark.parametrize("values", [{"num_attention_heads": 5}, {"hidden_size": "wide"}])
def test_a_config_that_contradicts_itself_is_refused(folder: Path, values: dict[str, Any]) -> None:
    edit_config(folder, **values)
    refused(folder, InvalidConfig, next(iter(values)).split("_")[0])


def test_wrong_npt_layers_in_a_file_are_refused(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    mixed_npt(llama).save_pretrained(tmp_path)
    edit_config(tmp_path, npt_layers={"7": "v1"})
    refused(tmp_path, InvalidConfig, "unknown layer 7")


@pytest.mark.parametrize("model_type", ["mistral", None])
def test_another_architecture_is_refused(folder: Path, model_type: str | None) -> None:
    edit_config(folder, model_type=model_type)
    refused(folder, UnsupportedModelType, f"{model_type!r}; supported: llama and npt_llama")


def test_no_weights_at_all_are_refused_and_pickle_is_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, MissingWeights, "pickle is refused")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refused(folder, CorruptedWeights, r"model\.safetensors is damaged or truncated")


def test_an_absent_shard_is_named(sharded: Path) -> None:
    shard = min(sharded.glob("*.safetensors"))
    shard.unlink()
    refused(sharded, MissingWeights, f"absent: {shard.name}")


def test_a_truncated_shard_is_named(sharded: Path) -> None:
    shard = max(sharded.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-8])
    refused(sharded, CorruptedWeights, shard.name)


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": {}}'])
def test_a_damaged_index_is_refused(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text)
    refused(sharded, CorruptedWeights, "index")


def test_a_missing_tensor_is_never_initialised_at_random(folder: Path) -> None:
    edit_weights(folder, drop="model.layers.1.mlp.up_proj.weight")
    refused(folder, MissingWeights, r"lacks model\.layers\.1\.mlp\.up_proj\.weight")


def test_an_npt_checkpoint_without_an_adapter_is_refused(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    mixed_npt(llama).save_pretrained(tmp_path)
    edit_weights(tmp_path, drop="model.layers.2.mlp.adapter.B_add.weight")
    refused(tmp_path, MissingWeights, "adapter.B_add")


def test_an_untied_head_may_not_be_missing(folder: Path) -> None:
    edit_weights(folder, drop="lm_head.weight")
    refused(folder, MissingWeights, "lm_head")


def test_a_tensor_of_another_model_is_refused(folder: Path) -> None:
    edit_weights(folder, **{"model.layers.0.mlp.experts.weight": torch.zeros(2)})
    refused(folder, UnexpectedWeights, "experts")


def test_rope_tables_of_old_checkpoints_are_ignored(
    folder: Path, llama: LlamaForCausalLM, ids: Tensor
) -> None:
    edit_weights(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})
    assert torch.equal(load_checkpoint(folder)(ids).logits, llama(ids).logits)


def test_a_shape_that_contradicts_the_config_is_refused(folder: Path) -> None:
    edit_config(folder, intermediate_size=40)
    refused(folder, ShapeMismatch, r"is \[32, 48\], config\.json says \[32, 40\].* and 8 more")


def test_every_error_is_a_checkpoint_error() -> None:
    own = [e for e in CheckpointError.__subclasses__() if e.__module__ == checkpoint.__name__]
    assert {error.__name__ for error in own} <= set((checkpoint.__doc__ or "").split())
