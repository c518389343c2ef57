"""Phase 2: an NPT model is fine-tuned for a use, by preset, on a mix of the corpus made for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from npt_core.convert import load_model
from npt_core.model import NPTForCausalLM
from npt_core.training.corpus import CorpusConfig
from npt_core.training.data import PackedRows
from npt_core.training.loop import LoopConfig, run
from npt_core.training.pretraining import PretrainingLoss
from npt_core.training.sharding import save_model
from npt_core.training.tokenizer import load_tokenizer


@dataclass(frozen=True)
class FinetuningPreset:
    """The mix of documents and the learning rate of one use."""

    known: float
    natural: float
    chained: float
    learning_rate: float


FINETUNING_PRESETS: Mapping[str, FinetuningPreset] = {
    # Reading: contexts, questions, and refusing what was not given.
    "factual_recall": FinetuningPreset(known=0.16, natural=0.0, chained=0.0, learning_rate=3e-4),
    # Two facts must be combined to answer.
    "reasoning": FinetuningPreset(known=0.1, natural=0.0, chained=0.5, learning_rate=3e-4),
    # Mostly running text; small steps, so that reading is not unlearned.
    "creative": FinetuningPreset(known=0.05, natural=0.7, chained=0.0, learning_rate=1e-4),
}


@dataclass(frozen=True)
class FinetuningConfig:
    """What is tuned, for which use, on what; `preset` must be a key of `FINETUNING_PRESETS`."""

    model: Path
    out: Path
    preset: str
    steps: int = 200
    batch: int = 32
    length: int = 256
    seed: int = 0
    data: Path | None = None
    mixed_precision: str = "bf16"
    compile: bool = True
    sharded: bool = False

    def loop(self, learning_rate: float) -> LoopConfig:
        """The settings of the training loop."""
        return LoopConfig(
            self.out,
            self.steps,
            learning_rate,
            seed=self.seed,
            mixed_precision=self.mixed_precision,
            compile=self.compile,
            sharded=self.sharded,
        )


def finetune(config: FinetuningConfig) -> NPTForCausalLM:
    """The tuned model, also saved in `config.out/model`; resumes from its own checkpoint.

    Raises ValueError for an unknown preset, and for `creative` without natural text.
    """
    if config.preset not in FINETUNING_PRESETS:
        raise ValueError(f"preset must be one of {', '.join(FINETUNING_PRESETS)}, not {config.preset!r}")
    preset = FINETUNING_PRESETS[config.preset]
    corpus = CorpusConfig(
        known=preset.known, natural=preset.natural, chained=preset.chained, data=config.data
    )
    if preset.natural and not corpus.natural_texts():
        raise ValueError(f"preset {config.preset!r} needs natural text: give its folder as data")
    tokenizer = load_tokenizer(config.model)
    model = load_model(config.model, attn_implementation="eager")
    rows = PackedRows(tokenizer, corpus, config.batch, config.length, config.seed + 4)
    config.out.mkdir(parents=True, exist_ok=True)
    run(PretrainingLoss(model), rows, config.loop(preset.learning_rate))
    save_model(model, tokenizer, config.out / "model")
    return model
