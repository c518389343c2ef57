"""The reference model, from nothing: tokenizer, teacher, equivalence (phase 1), calibration, card."""

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from accelerate.utils import set_seed
from transformers import PreTrainedTokenizerFast

from npt_core.consolidation.calibration import PlasticityConfig, calibrate
from npt_core.consolidation.states import private_copy
from npt_core.convert import load_model
from npt_core.prompts import PlainTemplate
from npt_core.training.addressing import AddressedRows, AddressingConfig, AddressingLoss
from npt_core.training.card import write_card
from npt_core.training.corpus import CorpusConfig, documents, text_of
from npt_core.training.data import PackedRows
from npt_core.training.loop import LoopConfig, run
from npt_core.training.phase1 import LEARNING_RATE, Phase1Config, train_phase1
from npt_core.training.plasticity import CalibrationSizes, calibration_text
from npt_core.training.pretraining import MAX_POSITIONS, VOCABULARY, PretrainingLoss, new_teacher
from npt_core.training.sharding import save_model
from npt_core.training.tokenizer import load_tokenizer, train_tokenizer

TOKENIZER_DOCUMENTS = 20_000
TEACHER_LEARNING_RATE = 2e-3
REFERENCE_PLASTICITY = PlasticityConfig(
    layers=(5,), threshold=0.94, margin=0.015, max_threshold=0.98, questions=8, ridge_lambda=30.0
)
"""Chosen on the development split; see docs/lab-notebook.md."""
MEASURED_LAYERS = (4, 5)
TEACHER_ADDRESSING = AddressingConfig(groups=5)


@dataclass(frozen=True)
class ReferenceConfig:
    """Sizes of the run; the defaults made the checkpoint in `models/reference`."""

    out: Path
    data: Path | None = None
    teacher_steps: int = 1600
    equivalence_steps: int = 1100
    batch: int = 32
    length: int = 256
    adapter_rank: int = 64
    calibration: CalibrationSizes = field(default_factory=CalibrationSizes)
    seed: int = 0
    mixed_precision: str = "bf16"
    compile: bool = True

    @property
    def corpus(self) -> CorpusConfig:
        """The training corpus."""
        return CorpusConfig(data=self.data)

    @property
    def phase1(self) -> Phase1Config:
        """The equivalence phase, from `out/teacher` to `out/equivalence`."""
        return Phase1Config(
            teacher=self.out / "teacher",
            loop=self.loop("equivalence", self.equivalence_steps, LEARNING_RATE),
            corpus=self.corpus,
            rank=self.adapter_rank,
            batch=self.batch,
            length=self.length,
        )

    def loop(self, phase: str, steps: int, learning_rate: float) -> LoopConfig:
        """The training loop of a phase, in `out/phase`."""
        return LoopConfig(
            out=self.out / phase,
            steps=steps,
            learning_rate=learning_rate,
            seed=self.seed,
            mixed_precision=self.mixed_precision,
            compile=self.compile,
        )


def reference_tokenizer(config: ReferenceConfig) -> PreTrainedTokenizerFast:
    """The tokenizer in `out/tokenizer`, trained first if it is not there."""
    path = config.out / "tokenizer"
    if not path.exists():
        sample = islice(documents(config.seed + 1, config.corpus), TOKENIZER_DOCUMENTS)
        train_tokenizer(map(text_of, sample), VOCABULARY, MAX_POSITIONS).save_pretrained(path)
    return load_tokenizer(path)


def train_teacher(config: ReferenceConfig) -> None:
    """Trains, or resumes, the teacher in `out/teacher`; does nothing if it is there."""
    path = config.out / "teacher"
    if (path / "config.json").exists():
        return
    tokenizer = reference_tokenizer(config)
    path.mkdir(parents=True, exist_ok=True)
    set_seed(config.seed)
    teacher = new_teacher(tokenizer)
    rows = PackedRows(tokenizer, config.corpus, config.batch, config.length, config.seed + 2)
    loop = config.loop("teacher", config.teacher_steps, TEACHER_LEARNING_RATE)
    loss = AddressingLoss(PretrainingLoss(teacher), teacher, PlainTemplate(tokenizer), TEACHER_ADDRESSING)
    run(loss, AddressedRows(rows, TEACHER_ADDRESSING), loop)
    save_model(teacher, tokenizer, path)


def assemble(config: ReferenceConfig, plasticity: PlasticityConfig, folder: Path) -> None:
    """Writes the checkpoint to ship: bf16 weights, tokenizer, calibration, model card."""
    train_teacher(config)
    student = train_phase1(config.phase1)
    folder.mkdir(parents=True, exist_ok=True)
    # Cast weights alone: `.bfloat16()` would round the rotary frequencies too.
    tied = set(student.all_tied_weights_keys)
    weights = {n: w.to(torch.bfloat16) for n, w in student.state_dict().items() if n not in tied}
    student.config.dtype = torch.bfloat16
    student.save_pretrained(folder, state_dict=weights)
    reference_tokenizer(config).save_pretrained(folder)
    # Calibrated as it will be served: from the rounded weights, in float32.
    model = load_model(folder, dtype=torch.float32)
    model.eval()  # type: ignore[no-untyped-call]
    template = PlainTemplate(load_tokenizer(folder))
    text = calibration_text(model, template, config.corpus, config.calibration)
    calibrate(private_copy(model), plasticity, text, MEASURED_LAYERS).save(folder)
    write_card(
        folder,
        config.out,
        (config.teacher_steps, config.equivalence_steps),
        bool(config.corpus.natural_texts()),
    )
