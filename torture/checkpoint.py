"""A second real checkpoint, made of a first."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

NORM = "model.norm.weight"
LARGER = 1 + 2**-4
"""Exact in bfloat16."""


def retrained(model: Path, folder: Path) -> Path:
    """As after a little more training: other bytes, and so another checkpoint, of nearly the same answers.
    Its last norm is larger.
    """
    shutil.copytree(model, folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[NORM] = (tensors[NORM].float() * LARGER).to(tensors[NORM].dtype)
    if torch.equal(tensors[NORM], load_file(file)[NORM]):
        raise ValueError(f"{model}: its last norm has no weights")
    save_file(tensors, file, metadata={"format": "pt"})
    return folder
