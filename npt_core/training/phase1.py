"""Phase 1 as a run: convert a Llama, train it towards its teacher, save it. Resumable."""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import LlamaForCausalLM

from npt_core.config import LayerSpec
from npt_core.convert import convert_llama_to_npt
from npt_core.model import NPTForCausalLM
from npt_core.training.corpus import CorpusConfig
from npt_core.training.data import PackedRows
from npt_core.training.equivalence import EquivalenceConfig, EquivalenceLoss
from npt_core.training.loop import LoopConfig, run
from npt_core.training.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Phase1Config:
    """A teacher folder, what to convert, and how to train it."""

    teacher: Path
    out: Path
    layers: LayerSpec = "all"
    rank: int = 64
    steps: int = 500
    learning_rate: float = 1e-3
    losses: EquivalenceConfig = field(default_factory=EquivalenceConfig)
    batch: int = 32
    length: int = 256
    seed: int = 0
    data: Path | None = None
    mixed_precision: str = "bf16"
    compile: bool = True


def train_phase1(config: Phase1Config) -> NPTForCausalLM:
    """The V2 student; saved with its tokenizer in `out/model`, and only loaded if it is there already."""
    path = config.out / "model"
    if not (path / "config.json").exists():
        tokenizer = load_tokenizer(config.teacher)
        teacher = LlamaForCausalLM.from_pretrained(config.teacher, attn_implementation="eager")
        student = convert_llama_to_npt(teacher, config.layers, "v2", config.rank, "both", config.seed)
        corpus = CorpusConfig(data=config.data)
        rows = PackedRows(tokenizer, corpus, config.batch, config.length, config.seed + 3)
        loop = LoopConfig(
            out=config.out,
            steps=config.steps,
            learning_rate=config.learning_rate,
            embedding_learning_rate=config.learning_rate,
            seed=config.seed,
            mixed_precision=config.mixed_precision,
            compile=config.compile,
        )
        config.out.mkdir(parents=True, exist_ok=True)
        run(EquivalenceLoss(student, teacher, config.losses), rows, loop)
        student.save_pretrained(path)
        tokenizer.save_pretrained(path)
    loaded: NPTForCausalLM = NPTForCausalLM.from_pretrained(path)
    return loaded
