"""What a checkpoint must know about its own activations before facts can be written.

Per plastic layer: the whitened key space, the keys of a reference text (columns must not fire on
them), the keys of a separate locality set (to verify that they do not), and the second moment of
the keys for ridge and folding. Stored beside the weights as `plasticity.json` and
`plasticity.safetensors`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from npt_core.bank import Whitening
from npt_core.consolidation.states import run
from npt_core.model import NPTForCausalLM

CONFIG_FILE, TENSOR_FILE = "plasticity.json", "plasticity.safetensors"
KEY_SCALE = 127.0
"""Reference keys are unit vectors kept as int8; the error of a cosine is below 0.01."""


@dataclass(frozen=True)
class PlasticityConfig:
    """How facts are written: measured on a development split, stored with the checkpoint."""

    layers: tuple[int, ...]
    key_width: int = 64
    plain_text: bool = True
    """Prompts are plain text even though the tokenizer has a chat template."""
    surprise: float = 0.1
    """KL in nats above which a token is worth a column."""
    threshold: float = 0.6
    """Lowest cosine at which a column may fire."""
    margin: float = 0.05
    """How far above the nearest foreign key a column's threshold lies."""
    max_threshold: float = 0.9
    """Columns that would need a higher threshold are dropped: they are not specific to the fact."""
    merge: float = 0.9
    """Cosine from which a token is left to a column that the fact already has."""
    questions: int = 10
    temperature: float = 0.8
    held_out: float = 0.34
    look_alikes: int = 8
    refine_steps: int = 0
    """Gradient steps on the values after they are solved; the last rung of the ladder."""
    min_recall: float = 0.99
    min_locality: float = 0.99
    ridge_lambda: float = 1e4
    fold_lambda: float = 30.0

    @classmethod
    def load(cls, path: Path) -> Self:
        """From `plasticity.json`; unknown names raise TypeError."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**values | {"layers": tuple(values["layers"])})

    def save(self, path: Path) -> None:
        """To `plasticity.json`."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class LayerStatistics:
    """One layer: see the module's docstring; keys are unit rows."""

    whitening: Whitening
    reference: Tensor  # [n, p] float32
    locality: Tensor  # [m, p] float32
    second_moment: Tensor  # [d_ffn, d_ffn] float32: E[z z^T]
    output_energy: float  # E|W z|^2

    def tensors(self) -> dict[str, Tensor]:
        """Compact tensors for storing."""
        return {
            "mean": self.whitening.mean,
            "projection": self.whitening.projection,
            "reference": (self.reference * KEY_SCALE).round().to(torch.int8),
            "locality": (self.locality * KEY_SCALE).round().to(torch.int8),
            # A power of two would do as well; half precision keeps three digits, which is enough.
            "second_moment": self.second_moment.half(),
            "output_energy": torch.tensor([self.output_energy]),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """The inverse of `tensors`."""
        return cls(
            Whitening(tensors["mean"], tensors["projection"]),
            tensors["reference"].float() / KEY_SCALE,
            tensors["locality"].float() / KEY_SCALE,
            tensors["second_moment"].float(),
            float(tensors["output_energy"]),
        )


@dataclass(frozen=True)
class Calibration:
    """The configuration, and the statistics of each plastic layer."""

    config: PlasticityConfig
    layers: Mapping[int, LayerStatistics]
    locality_rows: int
    """Prompts behind the locality keys."""
    locality_owner: Tensor
    """Which prompt each locality key belongs to, `[m]`."""

    @property
    def whitening(self) -> dict[int, Whitening]:
        """For the bank."""
        return {index: layer.whitening for index, layer in self.layers.items()}

    def with_config(self, config: PlasticityConfig) -> Self:
        """The same statistics under other parameters."""
        return replace(self, config=config)

    def save(self, folder: Path) -> None:
        """Writes both files into `folder`."""
        self.config.save(folder / CONFIG_FILE)
        tensors = {"locality_owner": self.locality_owner.to(torch.int16)}
        for index, layer in self.layers.items():
            tensors |= {f"{index}.{k}": v.contiguous() for k, v in layer.tensors().items()}
        save_file(tensors, folder / TENSOR_FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads both files.

        Raises OSError, KeyError, TypeError, ValueError or SafetensorError for damaged ones.
        """
        config = PlasticityConfig.load(folder / CONFIG_FILE)
        tensors = load_file(folder / TENSOR_FILE)
        owner = tensors["locality_owner"].long()
        layers = {
            index: LayerStatistics.from_tensors(
                {k.split(".", 1)[1]: v for k, v in tensors.items() if k.startswith(f"{index}.")}
            )
            for index in sorted({int(k.split(".")[0]) for k in tensors if k[0].isdigit()})
        }
        return cls(config, layers, int(owner.max()) + 1, owner)


@dataclass(frozen=True)
class CalibrationText:
    """Token ids to calibrate on; none of it may be used for training or evaluation again.

    `answers`: rows of prompt and answer, without a context, with the index where the answer starts.
    `reference`: ordinary documents. `locality`: prompts with the model's own answers.
    """

    answers: Sequence[tuple[Sequence[int], int]]
    reference: Sequence[Sequence[int]]
    locality: Sequence[Sequence[int]]


def calibrate(
    model: NPTForCausalLM, config: PlasticityConfig, text: CalibrationText
) -> Calibration:
    """Measures `model` (a private copy) in the layers of `config`."""
    starts = [start for _, start in text.answers]
    answers, _ = _keys(model, [ids for ids, _ in text.answers], config.layers, starts)
    whitening = {i: _whitening(z, config.key_width, seed=i) for i, z in answers.items()}
    reference, _ = _keys(model, text.reference, config.layers)
    locality, owner = _keys(model, text.locality, config.layers)
    layers = {}
    for index in config.layers:
        z, w = reference[index], model.model.layers[index].mlp.down_proj.weight.float()
        moment = z.T @ z / len(z)
        layers[index] = LayerStatistics(
            whitening[index],
            torch.cat([whitening[index].key(z), whitening[index].key(answers[index])]),
            whitening[index].key(locality[index]),
            moment,
            float(((w @ moment) * w).sum()),
        )
    return Calibration(config, layers, len(text.locality), owner)


def _whitening(z: Tensor, width: int, seed: int) -> Whitening:
    """Whitens by the covariance of `z` `[n, d_ffn]`, then projects at random to `width` columns."""
    mean = z.mean(0)
    covariance = torch.cov(z.T.double())
    ridge = 1e-2 * covariance.diagonal().mean()
    values, vectors = torch.linalg.eigh(covariance + ridge * torch.eye(len(covariance)))
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(len(values), width, generator=generator, dtype=torch.float64) / width**0.5
    projection = (vectors * values.rsqrt()) @ random
    return Whitening(mean, projection.float())


def _keys(
    model: NPTForCausalLM,
    rows: Sequence[Sequence[int]],
    layers: Sequence[int],
    starts: Sequence[int] | None = None,
    batch: int = 32,
) -> tuple[dict[int, Tensor], Tensor]:
    """By layer the activations `[n, d_ffn]` at every token from `starts - 1` on, and each one's
    row.
    """
    found: dict[int, list[Tensor]] = {index: [] for index in layers}
    owners: list[Tensor] = []
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for chunk in (order[i : i + batch] for i in range(0, len(order), batch)):
        states = run(model, [rows[i] for i in chunk], layers)
        for k, i in enumerate(chunk):
            span = slice(0 if starts is None else starts[i] - 1, len(rows[i]))
            owners.append(torch.full((len(rows[i][span]),), i))
            for index in layers:
                found[index].append(states.keys[index][k, span].float())
    return {index: torch.cat(parts) for index, parts in found.items()}, torch.cat(owners)
