"""The reference model, from nothing: tokenizer, teacher, equivalence (phase 1), fine-tuning (phase 2)."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from accelerate.utils import set_seed
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from npt_core.convert import convert_llama_to_npt
from npt_core.model import NPTForCausalLM
from npt_core.training.corpus import CorpusConfig, documents, text_of
from npt_core.training.data import PackedRows
from npt_core.training.equivalence import EquivalenceConfig, EquivalenceLoss
from npt_core.training.loop import LoopConfig, run
from npt_core.training.pretraining import MAX_POSITIONS, VOCABULARY, PretrainingLoss, new_teacher
from npt_core.training.tokenizer import train_tokenizer

TOKENIZER_DOCUMENTS = 20_000


@dataclass(frozen=True)
class ReferenceConfig:
    """Sizes of the run; the defaults made the checkpoint in `models/reference`."""

    out: Path
    data: Path | None = None
    teacher_steps: int = 1500
    equivalence_steps: int = 600
    batch: int = 32
    length: int = 256
    adapter_rank: int = 64
    equivalence_learning_rate: float = 1e-3
    seed: int = 0
    mixed_precision: str = "bf16"
    compile: bool = True

    @property
    def corpus(self) -> CorpusConfig:
        """The training corpus."""
        return CorpusConfig(data=self.data)


def reference_tokenizer(config: ReferenceConfig) -> PreTrainedTokenizerFast:
    """The tokenizer in `out/tokenizer`, trained first if it is not there."""
    path = config.out / "tokenizer"
    if not path.exists():
        sample = islice(documents(config.seed + 1, config.corpus), TOKENIZER_DOCUMENTS)
        train_tokenizer(map(text_of, sample), VOCABULARY, MAX_POSITIONS).save_pretrained(path)
    loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(path)
    return loaded


def train_teacher(config: ReferenceConfig) -> LlamaForCausalLM:
    """The teacher in `out/teacher`, trained (or resumed) first if it is not there."""
    path = config.out / "teacher"
    if not (path / "config.json").exists():
        tokenizer = reference_tokenizer(config)
        set_seed(config.seed)
        teacher = new_teacher(tokenizer)
        rows = PackedRows(tokenizer, config.corpus, config.batch, config.length, config.seed + 2)
        run(PretrainingLoss(teacher), rows, loop_config(config, "teacher", config.teacher_steps))
        teacher.save_pretrained(path)
        tokenizer.save_pretrained(path)
    loaded: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(path)
    return loaded


def train_equivalence(config: ReferenceConfig) -> NPTForCausalLM:
    """The V2 student in `out/equivalence`: the teacher with attention moved into the modulation."""
    path = config.out / "equivalence"
    if not (path / "config.json").exists():
        tokenizer = reference_tokenizer(config)
        teacher = train_teacher(config)
        teacher.set_attn_implementation("eager")
        student = convert_llama_to_npt(teacher, "all", "v2", config.adapter_rank, "both", config.seed)
        rows = PackedRows(tokenizer, config.corpus, config.batch, config.length, config.seed + 3)
        loss = EquivalenceLoss(student, teacher, EquivalenceConfig())
        rate = config.equivalence_learning_rate
        run(loss, rows, loop_config(config, "equivalence", config.equivalence_steps, rate))
        student.save_pretrained(path)
        tokenizer.save_pretrained(path)
    loaded: NPTForCausalLM = NPTForCausalLM.from_pretrained(path)
    return loaded


def loop_config(
    config: ReferenceConfig, name: str, steps: int, learning_rate: float = 2e-3
) -> LoopConfig:
    """The loop's settings for one phase; its log and checkpoints go to `out/name`."""
    out = config.out / name
    out.mkdir(parents=True, exist_ok=True)
    return LoopConfig(
        out=out,
        steps=steps,
        learning_rate=learning_rate,
        embedding_learning_rate=learning_rate,
        seed=config.seed,
        mixed_precision=config.mixed_precision,
        compile=config.compile,
    )
