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
REFERENCE_CHUNK = 128
"""Rows measured at once."""
NEAR_DUPLICATE = 0.96
WITHIN_RIDGE = 0.02
"""Share of the mean variance inside classes that keeps rare directions from exploding."""
PROMPT_SHARE = 0.1
"""Share of the second moment that comes from the ends of prompts: they are rare in text, and what is
folded into weights must leave the prompts about other facts alone. More of it keeps more of their
answers, and costs recall.
"""
NOTHING = -1
"""Stands where a text has no next token."""
KEY_SCALE = 127.0
"""Reference keys are unit vectors kept as int8; the error of a cosine is below 0.01."""


@dataclass(frozen=True)
class PlasticityConfig:
    """How facts are written: measured on a development split, stored with the checkpoint."""

    layers: tuple[int, ...]
    """Where facts are written unless a request says otherwise."""
    key_width: int = 64
    plain_text: bool = True
    """Prompts are plain text even though the tokenizer has a chat template."""
    surprise: float = 0.1
    """KL in nats above which a token is worth a column."""
    threshold: float = 0.6
    """Lowest cosine at which a column may fire."""
    margin: float = 0.02
    """How far above the nearest foreign key a column's threshold lies."""
    max_threshold: float = 0.97
    """Columns that would need a higher threshold are dropped: they are not specific to the fact."""
    same_question: float = 0.95
    """Cosine from which a reference key is the fact's own question, asked where its answer was another:
    the column is meant to fire there.
    """
    merge: float = 0.95
    """Cosine from which a token is left to a column that the fact already has."""
    questions: int = 10
    temperature: float = 0.8
    held_out: float = 0.34
    look_alikes: int = 24
    """Prompts about resembling names, on which no column may fire."""
    refine_steps: int = 0
    """Gradient steps on the values after they are solved; the last rung of the ladder."""
    min_recall: float = 0.99
    min_locality: float = 0.99
    ridge_lambda: float = 300.0
    fold_lambda: float = 150.0

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
    following: Tensor  # [n] int64: the token that comes after each reference key; NOTHING at an end
    locality: Tensor  # [m, p] float32
    second_moment: Tensor  # [d_ffn, d_ffn] float32: E[z z^T] over text and ends of prompts
    output_energy: float  # E|W z|^2

    def tensors(self) -> dict[str, Tensor]:
        """Compact tensors for storing."""
        return {
            "mean": self.whitening.mean,
            "projection": self.whitening.projection,
            "reference": (self.reference * KEY_SCALE).round().to(torch.int8),
            "following": self.following.to(torch.int32),
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
            tensors["following"].long(),
            tensors["locality"].float() / KEY_SCALE,
            tensors["second_moment"].float(),
            float(tensors["output_energy"]),
        )


@dataclass(frozen=True)
class Calibration:
    """The configuration, and the statistics of each measured layer."""

    config: PlasticityConfig
    layers: Mapping[int, LayerStatistics]
    locality_rows: int
    """Prompts behind the locality keys."""
    locality_owner: Tensor
    """Which prompt each locality key belongs to, `[m]`."""
    locality_ids: Sequence[Sequence[int]]
    """The prompts with the model's answers; for updates that are not columns."""

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
        ids = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row, dtype=torch.int32) for row in self.locality_ids], True, -1
        )
        tensors = {"locality_owner": self.locality_owner.to(torch.int16), "locality_ids": ids}
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
        ids = [[i for i in row if i >= 0] for row in tensors["locality_ids"].tolist()]
        return cls(config, layers, int(owner.max()) + 1, owner, ids)


@dataclass(frozen=True)
class PromptRow:
    """Token ids of a prompt that the model cannot answer, and the number of the fact it asks for."""

    ids: Sequence[int]
    fact: int


@dataclass(frozen=True)
class CalibrationText:
    """Token ids to calibrate on; none of it may be used for training or evaluation again.

    `prompts`: questions and sentences to complete, without a context. Those of one fact, in several
    wordings and forms, share their `fact` number: they teach the key space what a wording changes.
    `reference`: ordinary documents. `locality`: prompts with the model's own answers.
    """

    prompts: Sequence[PromptRow]
    reference: Sequence[Sequence[int]]
    locality: Sequence[Sequence[int]]


def calibrate(
    model: NPTForCausalLM,
    config: PlasticityConfig,
    text: CalibrationText,
    measured: Sequence[int] | None = None,
) -> Calibration:
    """Measures `model` (a private copy) in the layers `measured`, by default those of `config`: a request
    may choose among them.
    """
    chosen = tuple(measured or config.layers)
    prompts = _Activations.of(model, [row.ids for row in text.prompts], chosen)
    facts = torch.tensor([text.prompts[row].fact for row in prompts.rows])
    whitening = {i: key_space(prompts.last(i), facts, config.key_width) for i in chosen}
    reference = _Reference(chosen, whitening)
    for start in range(0, len(text.reference), REFERENCE_CHUNK):
        rows = text.reference[start : start + REFERENCE_CHUNK]
        reference.add(_Activations.of(model, rows, chosen), rows)
    locality = _Activations.of(model, text.locality, chosen)
    layers = {}
    for index in chosen:
        weight = model.model.layers[index].mlp.down_proj.weight.float().cpu()
        asked = prompts.last(index)
        text_moment = reference.moments[index] / reference.tokens
        moment = (1 - PROMPT_SHARE) * text_moment + PROMPT_SHARE * asked.T @ asked / len(asked)
        key = whitening[index].key
        layers[index] = LayerStatistics(
            whitening[index],
            *thinned(
                torch.cat([*reference.keys[index], key(asked)]),
                torch.cat([*reference.following, torch.full((len(asked),), NOTHING)]),
            ),
            key(locality.joined(index)),
            moment,
            float(((weight @ moment) * weight).sum().detach()),
        )
    return Calibration(config, layers, len(text.locality), locality.owners, text.locality)


class _Reference:
    """Keys and second moments of the reference text, chunk by chunk: the activations are too many."""

    def __init__(self, layers: Sequence[int], whitening: Mapping[int, Whitening]) -> None:
        self.whitening = whitening
        self.keys: dict[int, list[Tensor]] = {index: [] for index in layers}
        self.following: list[Tensor] = []
        self.moments: dict[int, Tensor] = {}
        self.tokens = 0

    def add(self, seen: "_Activations", rows: Sequence[Sequence[int]]) -> None:
        """Takes in the activations of more `rows` of text."""
        self.following += [torch.tensor([*rows[i][1:], NOTHING]) for i in seen.rows]
        for index, kept in self.keys.items():
            z = seen.joined(index)
            kept.append(self.whitening[index].key(z))
            self.moments[index] = self.moments.get(index, torch.zeros(())) + z.T @ z
        self.tokens += len(seen.owners)


def thinned(keys: Tensor, following: Tensor, chunk: int = 2048) -> tuple[Tensor, Tensor]:
    """`keys` `[n, p]` and the tokens `following` them `[n]`, without those that an earlier kept one with the
    same next token is closer to than `NEAR_DUPLICATE`.

    The leak check looks at the nearest key only: a near-duplicate changes nothing but the size.
    """
    kept, after = keys[:0], following[:0]
    for part, then in zip(keys.split(chunk), following.split(chunk), strict=True):
        if len(kept):
            new = ~_close(part, then, kept, after).any(dim=1)
            part, then = part[new], then[new]
        close = torch.triu(_close(part, then, part, then), diagonal=1)
        stays = torch.ones(len(part), dtype=torch.bool)
        for k, near in enumerate(close):
            if stays[k]:  # a key that is gone stands for no other
                stays &= ~near
        kept, after = torch.cat([kept, part[stays]]), torch.cat([after, then[stays]])
    return kept, after


def _close(keys: Tensor, following: Tensor, others: Tensor, after: Tensor) -> Tensor:
    """Which of `others` each key nearly is, `[n, m]`."""
    return (keys @ others.T >= NEAR_DUPLICATE) & (following[:, None] == after)


def key_space(z: Tensor, facts: Tensor, width: int) -> Whitening:
    """Linear discriminant analysis of activations `z` `[n, d_ffn]` where an answer begins, whitened.

    With `S_w` the scatter among wordings of one fact (`facts` `[n]` tells which) and `S_b` between the
    means of facts, the projection keeps the `width` directions of largest `S_b / S_w` and scales each to
    unit total variance: keys of one fact come together, those of others become as good as random.
    """
    _, classes = torch.unique(facts, return_inverse=True)
    z = z.double()
    count = int(classes.max()) + 1
    sizes = torch.zeros(count, dtype=torch.float64).index_add_(0, classes, torch.ones(len(z)).double())
    sums = torch.zeros(count, z.shape[1], dtype=torch.float64).index_add_(0, classes, z)
    means = sums / sizes[:, None]
    mean = z.mean(0)
    inside = z - means[classes]
    within = inside.T @ inside / max(1, len(z) - count)
    spread = (means - mean) * sizes.sqrt()[:, None]
    between = spread.T @ spread / len(z)
    within += WITHIN_RIDGE * within.diagonal().mean() * torch.eye(z.shape[1], dtype=torch.float64)
    values, vectors = torch.linalg.eigh(within)
    whiten = vectors * values.rsqrt()
    ratios, axes = torch.linalg.eigh(whiten.T @ between @ whiten)
    kept = slice(max(0, len(ratios) - width), None)
    projection = (whiten @ axes[:, kept]) * (ratios[kept].clamp(min=0) + 1).rsqrt()
    return Whitening(mean.float(), projection.float())


@dataclass
class _Activations:
    """By layer the activations `[tokens, d_ffn]` of rows, in the order `rows`."""

    keys: dict[int, list[Tensor]]
    rows: list[int]

    @classmethod
    def of(
        cls,
        model: NPTForCausalLM,
        rows: Sequence[Sequence[int]],
        layers: Sequence[int],
        batch: int = 32,
    ) -> Self:
        """Every token of `rows`, the short ones first."""
        made = cls({index: [] for index in layers}, sorted(range(len(rows)), key=lambda i: len(rows[i])))
        for start in range(0, len(rows), batch):
            chunk = made.rows[start : start + batch]
            states = run(model, [rows[i] for i in chunk], layers)
            for index in layers:
                made.keys[index] += states.keys[index].split([len(rows[i]) for i in chunk])
        return made

    @property
    def owners(self) -> Tensor:
        """The row of every token."""
        some = next(iter(self.keys.values()))
        return torch.cat([torch.full((len(z),), i) for i, z in zip(self.rows, some, strict=True)])

    def joined(self, layer: int) -> Tensor:
        """`[tokens, d_ffn]`."""
        return torch.cat(self.keys[layer])

    def last(self, layer: int) -> Tensor:
        """The last token of each row, `[rows, d_ffn]`: where the model decides whether it knows."""
        return torch.stack([part[-1] for part in self.keys[layer]])
