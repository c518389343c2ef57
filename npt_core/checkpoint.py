"""Reading Llama and NPT checkpoints strictly: every weight is there, or nothing is loaded.

CheckpointError
├── CheckpointNotFound      neither a directory nor a hub id that can be fetched
├── MissingConfig           no config.json
├── InvalidConfig           config.json is not JSON, or its values contradict each other
├── UnsupportedModelType    neither llama nor npt_llama
├── CorruptedWeights        a safetensors file or index cannot be read to its end
├── MissingWeights          no safetensors, an absent shard, or tensors the model needs
├── UnexpectedWeights       tensors the model has no place for
└── ShapeMismatch           a tensor whose shape contradicts config.json
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError, safe_open
from transformers import LlamaConfig
from transformers.distributed import DistributedConfig

from npt_core.config import NPTConfig
from npt_core.model import NPTForCausalLM

SUPPORTED_MODEL_TYPES = ("llama", NPTConfig.model_type)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "tokenizer*", "*.jinja"]
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
# Saved by old versions of transformers; recomputed from the config.
_OBSOLETE = re.compile(r"rotary_emb\.inv_freq$")

Shape = tuple[int, ...]


class CheckpointError(Exception):
    """A checkpoint cannot be used; the message says which file and why."""


class CheckpointNotFound(CheckpointError):
    pass


class MissingConfig(CheckpointError):
    pass


class InvalidConfig(CheckpointError):
    pass


class UnsupportedModelType(CheckpointError):
    pass


class CorruptedWeights(CheckpointError):
    pass


class MissingWeights(CheckpointError):
    pass


class UnexpectedWeights(CheckpointError):
    pass


class ShapeMismatch(CheckpointError):
    pass


def load_checkpoint(
    source: str | Path,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
    distributed: Callable[[NPTConfig], DistributedConfig] | None = None,
) -> NPTForCausalLM:
    """The model in `source`, a local directory or a hub id, in eval mode.

    A Llama checkpoint becomes an NPT model of plain layers. `dtype` `None` keeps the dtype the
    checkpoint was saved in; `attn_implementation` `None` is the default of transformers. What
    `distributed` makes of the configuration says how the model is split among processes.

    Raises:
        CheckpointError: the subclass says what is wrong; nothing is ever initialised at random.
    """
    folder = resolve_folder(source)
    config = read_config(folder)
    _check_tensors(folder, config, read_shapes(folder))
    model: NPTForCausalLM = NPTForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype="auto" if dtype is None else dtype,
        attn_implementation=attn_implementation,
        use_safetensors=True,
        local_files_only=True,
        distributed_config=None if distributed is None else distributed(config),
    )
    model.eval()  # type: ignore[no-untyped-call]
    return model


def resolve_folder(source: str | Path) -> Path:
    """A local directory as it is; a hub id after downloading (or finding it in the cache).

    Raises:
        CheckpointNotFound: no such directory, and not a hub id that can be fetched.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointNotFound(f"{source} is a file; give the directory that holds config.json")
    if not _HUB_ID.fullmatch(str(source)):
        raise CheckpointNotFound(f"{source} is neither a directory nor a hub id (owner/name)")
    try:
        return Path(snapshot_download(str(source), allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointNotFound(
            f"{source} is not a directory, and fetching it from the hub failed: {error}"
        ) from error


def read_model_type(folder: Path) -> str:
    """`"llama"` or `"npt_llama"`.

    Raises:
        MissingConfig, InvalidConfig, UnsupportedModelType
    """
    path = folder / "config.json"
    if not path.is_file():
        raise MissingConfig(f"{folder} holds no config.json")
    model_type = _read_json(path, InvalidConfig).get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES:
        supported = " and ".join(SUPPORTED_MODEL_TYPES)
        raise UnsupportedModelType(f"{path}: model_type {model_type!r}; supported: {supported}")
    return str(model_type)


def read_config(folder: Path) -> NPTConfig:
    """The configuration in `folder`; that of a Llama names no NPT layers.

    Raises:
        MissingConfig, InvalidConfig, UnsupportedModelType
    """
    model_type = read_model_type(folder)
    try:
        if model_type == NPTConfig.model_type:
            return NPTConfig.from_pretrained(folder)
        return npt_config(LlamaConfig.from_pretrained(folder))
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise InvalidConfig(f"{folder / 'config.json'}: {error}") from error


def npt_config(config: LlamaConfig) -> NPTConfig:
    """An `NPTConfig` equal to a Llama's, with plain layers only."""
    values = config.to_dict()
    for name in ("model_type", "architectures", "transformers_version"):
        values.pop(name, None)
    return NPTConfig(**values)


def read_shapes(folder: Path) -> dict[str, Shape]:
    """Name and shape of every tensor, from the headers alone.

    Raises:
        MissingWeights: no safetensors here, or the index names a shard that is absent.
        CorruptedWeights: a header is damaged or a file is shorter than its header says.
    """
    shapes: dict[str, Shape] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, OSError) as error:
            raise CorruptedWeights(f"{path} is damaged or truncated: {error}") from error
    return shapes


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / _WEIGHTS, folder / _INDEX
    if single.is_file():
        return [single]
    if not index.is_file():
        raise MissingWeights(f"{folder} holds neither {_WEIGHTS} nor {_INDEX} (pickle is refused)")
    shards = _read_json(index, CorruptedWeights).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CorruptedWeights(f"{index} has no weight_map")
    paths = [folder / name for name in sorted(set(shards.values()))]
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        raise MissingWeights(f"{index} names shards that are absent: {', '.join(absent)}")
    return paths


def _check_tensors(folder: Path, config: NPTConfig, found: dict[str, Shape]) -> None:
    expected = _expected_shapes(config)
    optional = set(NPTForCausalLM._tied_weights_keys) if config.tie_word_embeddings else set()
    missing = sorted(expected.keys() - found.keys() - optional)
    if missing:
        raise MissingWeights(f"{folder} lacks {_listed(missing)}")
    unexpected = sorted(name for name in found.keys() - expected.keys() if not _OBSOLETE.search(name))
    if unexpected:
        raise UnexpectedWeights(f"{folder} holds tensors of another model: {_listed(unexpected)}")
    wrong = [
        f"{name} is {list(found[name])}, config.json says {list(shape)}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    if wrong:
        raise ShapeMismatch(f"{folder}: {_listed(wrong)}")


def _expected_shapes(config: NPTConfig) -> dict[str, Shape]:
    with torch.device("meta"):
        model = NPTForCausalLM(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _read_json(path: Path, error: type[CheckpointError]) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as cause:
        raise error(f"{path} is not readable JSON: {cause}") from cause
    if not isinstance(value, dict):
        raise error(f"{path} holds {type(value).__name__}, not an object")
    return value


def _listed(items: list[str], shown: int = 4) -> str:
    rest = f" and {len(items) - shown} more" if len(items) > shown else ""
    return "; ".join(items[:shown]) + rest
