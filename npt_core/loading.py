"""A folder becomes a running model: weights, tokenizer, template, bank, consolidator.

Any Llama-family checkpoint will do. One that was never calibrated is calibrated on first use, on
text from the corpus generator; with `cache` the result is kept for the next start.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoTokenizer

from npt_core.bank import Bank
from npt_core.checkpoint import CheckpointError, resolve_folder
from npt_core.config import resolve_layers
from npt_core.consolidation import (
    Calibration,
    Consolidator,
    FoldWriter,
    PlasticityConfig,
    calibrate,
    modulates,
    modulation_strengths,
)
from npt_core.consolidation.calibration import CONFIG_FILE, TENSOR_FILE
from npt_core.consolidation.states import private_copy
from npt_core.convert import load_model
from npt_core.engine import StepRunner, runner_for
from npt_core.model import NPTForCausalLM
from npt_core.placement import Device, DType, placed
from npt_core.prompts import PromptTemplate, template_for
from npt_core.training.corpus import CorpusConfig
from npt_core.training.plasticity import CalibrationSizes, calibration_text

BANK_FILE = "bank.safetensors"
"""Beside the weights: facts that a server of the checkpoint begins with."""

FIRST_USE = CalibrationSizes(facts=200, documents=150, locality=60)
"""Smaller than a reference calibration: a foreign checkpoint should be ready within a minute on
CPU.
"""


class DamagedCalibration(CheckpointError):
    """`plasticity.json` or `plasticity.safetensors` cannot be used with this checkpoint."""


class TokenizerMissing(CheckpointError):
    """The checkpoint has no usable tokenizer."""


@dataclass(frozen=True)
class Runtime:
    """Everything a server or a tool needs of one checkpoint."""

    model: NPTForCausalLM
    tokenizer: Any
    template: PromptTemplate
    bank: Bank
    consolidator: Consolidator
    bank_file: Path | None
    """Facts that came with the checkpoint, as an export wrote them."""
    fingerprint: str
    """SHA-256 of configuration, weights and calibration, wherever it is kept: facts belong to all three."""

    @property
    def fold_writer(self) -> FoldWriter:
        """What folds facts into the weights."""
        return FoldWriter(self.consolidator)

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return int(self.model.config.num_hidden_layers)

    def runner(self, num_pages: int | None = None) -> StepRunner:
        """What the engine computes steps with, in `num_pages` pages of keys and values, by default as
        `runner_for` has it. Raises `engine.UnsupportedModel`.
        """
        return runner_for(self.model, num_pages)

    @property
    def modulates(self) -> bool:
        """Whether attention modulates any layer."""
        return modulates(self.model)

    def modulation_strengths(
        self, ids: Sequence[int], weights_version: int, modulation_scale: float | None
    ) -> list[float]:
        """How much modulation changes each token; see `npt_core.consolidation.strength`. Called where the
        consolidator computes: it takes the same private copy of the model.
        """
        model = self.consolidator.model
        return modulation_strengths(model, self.bank.layers, ids, weights_version, modulation_scale)

    @property
    def max_positions(self) -> int:
        """Prompt and answer together may take this many tokens."""
        return int(self.model.config.max_position_embeddings)


def load_runtime(
    source: str | Path, device: Device = "cpu", dtype: DType = "auto", cache: Path | None = None
) -> Runtime:
    """Loads a folder or hub id, to serve it on `device`.

    Raises CheckpointError for anything missing or damaged, Unplaceable for a device or dtype that cannot
    be had.
    """
    placement = placed(device, dtype)
    folder = resolve_folder(source)
    model: Any = load_model(folder, dtype=placement.dtype, attn_implementation="sdpa")
    # Served and taught, not trained: what refines columns shall not keep the activations of all layers.
    model.to(placement.device).eval().requires_grad_(False)
    tokenizer = load_tokenizer(folder)
    fingerprint = fingerprint_of(folder)
    kept = None if cache is None else kept_calibration(folder, cache)
    calibrated = stored_calibration(folder)
    elsewhere = kept if calibrated is None else None
    if elsewhere is not None:
        calibrated = stored_calibration(elsewhere)
    plain = calibrated is None or calibrated.config.plain_text
    template = template_for(tokenizer, end_ids(model, tokenizer), plain and calibrated is not None)
    if calibrated is None:
        calibrated = _calibrated(model, template, elsewhere)
    if elsewhere is not None:
        fingerprint = _joined(fingerprint, elsewhere / TENSOR_FILE)
    _check_fit(model, calibrated)
    bank = Bank(model, calibrated.whitening).attach()
    consolidator = Consolidator(model, template, calibrated)
    bank_file = folder / BANK_FILE
    brought = bank_file if bank_file.is_file() else None
    return Runtime(model, tokenizer, template, bank, consolidator, brought, fingerprint)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint. Raises TokenizerMissing."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise TokenizerMissing(f"{folder}: no usable tokenizer: {error}") from error


def end_ids(model: NPTForCausalLM, tokenizer: Any) -> tuple[int, ...]:
    """The ids that end an answer, the tokenizer's own first."""
    configured = model.generation_config.eos_token_id
    listed: Sequence[int | None] = configured if isinstance(configured, list) else [configured]
    found = [tokenizer.eos_token_id, *listed]
    return tuple(dict.fromkeys(i for i in found if i is not None))


def fingerprint_of(folder: Path) -> str:
    """SHA-256 over `config.json` and every safetensors file, in name order.

    The calibration is part of it: stored keys mean nothing in another key space.
    """
    digest = hashlib.sha256()
    for path in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def kept_calibration(folder: Path, cache: Path) -> Path:
    """Where the calibration of a checkpoint that came without one is kept."""
    return cache / fingerprint_of(folder)[:16]


def _joined(fingerprint: str, calibration: Path) -> str:
    """The fingerprint of a checkpoint with a calibration that lies elsewhere."""
    with calibration.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256((fingerprint + found).encode()).hexdigest()


def stored_calibration(folder: Path) -> Calibration | None:
    """The calibration that lies in `folder`, if any. Raises DamagedCalibration."""
    if not (folder / CONFIG_FILE).exists():
        return None
    try:
        return Calibration.load(folder)
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise DamagedCalibration(f"{folder}: the calibration is damaged: {error}") from error


def _calibrated(model: NPTForCausalLM, template: PromptTemplate, keep: Path | None) -> Calibration:
    layers = resolve_layers("upper_half", model.config.num_hidden_layers)
    config = PlasticityConfig(layers=layers, plain_text=hasattr(template, "inline_block"))
    text = calibration_text(model, template, CorpusConfig(), FIRST_USE)
    made = calibrate(private_copy(model), config, text)
    if keep is not None:
        _keep(made, keep)
    return made


def _keep(made: Calibration, folder: Path) -> None:
    """Whole or not at all: a start that is interrupted must not spoil the next one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder.parent) as unfinished:
        complete = Path(unfinished) / folder.name
        complete.mkdir()
        made.save(complete)
        complete.replace(folder)


def _check_fit(model: NPTForCausalLM, calibrated: Calibration) -> None:
    d_ffn, total = model.config.intermediate_size, model.config.num_hidden_layers
    missing = set(calibrated.config.layers) - set(calibrated.layers)
    wrong = [i for i, s in calibrated.layers.items() if i >= total or len(s.whitening.mean) != d_ffn]
    if missing or wrong:
        raise DamagedCalibration(f"the calibration does not fit the model: layers {wrong or sorted(missing)}")


def with_parameters(runtime: Runtime, **changes: Any) -> Consolidator:
    """A consolidator of the same checkpoint with other parameters; for measuring them."""
    calibration = runtime.consolidator.calibration
    changed = calibration.with_config(replace(calibration.config, **changes))
    return Consolidator(runtime.model, runtime.template, changed)
