"""A version as a checkpoint: folds are in its weights, and the bank lies beside them.

`npt serve` on the folder knows what the version knew, and answers with the same bits; whoever reads the
folder without the bank (`from_pretrained`) has the base weights with all that is folded.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from npt_core.bank import folded
from npt_core.checkpoint import resolve_folder
from npt_core.consolidation.calibration import CONFIG_FILE, TENSOR_FILE
from npt_core.loading import BANK_FILE, kept_calibration
from service.exports.contents import Contents
from service.exports.safetensors_stream import blocks_of_file, streamed
from service.exports.zipped import File

_COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "*.md")
_INDEX = "model.safetensors.index.json"


def checkpoint_files(held: Contents, model: str, calibrations: Path) -> list[File]:
    """The files of the folder. Everything that can be refused is refused now, and not while it is sent.

    Raises:
        BlobError: a blob is missing or damaged.
        npt_core.checkpoint.CheckpointError: the checkpoint is not there any more.
    """
    folder = resolve_folder(model)
    names = sorted({path.name for pattern in _COPIED for path in folder.glob(pattern)} - {_INDEX})
    files: list[File] = [(name, _read(folder / name)) for name in names]
    if not (folder / CONFIG_FILE).exists():
        kept = kept_calibration(folder, calibrations)
        files += [(name, _read(kept / name)) for name in (CONFIG_FILE, TENSOR_FILE)]
    grown = 0
    for path in sorted(folder.glob("*.safetensors")):
        if path.name == BANK_FILE:
            continue  # what it held is in the ledger
        new = _changed(path, held)
        blocks, metadata = blocks_of_file(path, new)
        grown += sum(block.size for block in blocks if path.name != TENSOR_FILE)
        files.append((path.name, streamed(blocks, metadata)))
    if (folder / _INDEX).exists():
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        index["metadata"] = {**index.get("metadata", {}), "total_size": grown}
        files.append((_INDEX, [json.dumps(index, indent=2).encode()]))
    if held.apart:
        files.append((BANK_FILE, streamed(held.blocks(), held.metadata())))
    return files


def _changed(path: Path, held: Contents) -> Mapping[str, bytes]:
    """The folded `down_proj`s of one file as float32, in which they are served; bf16 would round again."""
    names = {f"model.layers.{i}.mlp.down_proj.weight": delta for i, delta in held.fold.deltas.items()}
    changed = {}
    with safe_open(path, framework="pt") as file:
        for name in names.keys() & set(file.keys()):
            weight = folded(file.get_tensor(name).float(), names[name])
            changed[name] = weight.contiguous().view(torch.uint8).numpy().tobytes()
    return changed


def _read(path: Path) -> Iterator[bytes]:
    yield path.read_bytes()
