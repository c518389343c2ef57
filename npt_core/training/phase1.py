"""Phase 1 as a run: convert a Llama, train it towards its teacher, save it. Resumable."""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import LlamaForCausalLM

from npt_core.config import LayerSpec
from npt_core.convert import convert_llama_to_npt
from npt_core.model import NPTForCausalLM
from npt_core.prompts import PlainTemplate
from npt_core.training.addressing import AddressedRows, AddressingConfig, AddressingLoss
from npt_core.training.corpus import CorpusConfig
from npt_core.training.data import PackedRows
from npt_core.training.equivalence import EquivalenceConfig, EquivalenceLoss
from npt_core.training.loop import LoopConfig, run
from npt_core.training.sharding import save_model
from npt_core.training.tokenizer import load_tokenizer

LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Phase1Config:
    """A teacher folder, what to convert, and how to train it; the student goes to `loop.out/model`."""

    teacher: Path
    loop: LoopConfig
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    layers: LayerSpec = "all"
    rank: int = 64
    losses: EquivalenceConfig = field(default_factory=EquivalenceConfig)
    addressing: AddressingConfig = field(default_factory=AddressingConfig)
    """Weight 0 leaves the contrastive loss on keys, and its rows, out."""
    batch: int = 32
    length: int = 256


def train_phase1(config: Phase1Config) -> NPTForCausalLM:
    """The V2 student; saved with its tokenizer, and only loaded if it is there already."""
    path = config.loop.out / "model"
    if not (path / "config.json").exists():
        tokenizer = load_tokenizer(config.teacher)
        teacher = LlamaForCausalLM.from_pretrained(config.teacher, attn_implementation="eager")
        student = convert_llama_to_npt(teacher, config.layers, "v2", config.rank, "both", config.loop.seed)
        rows = PackedRows(tokenizer, config.corpus, config.batch, config.length, config.loop.seed + 3)
        loss = EquivalenceLoss(student, teacher, config.losses)
        config.loop.out.mkdir(parents=True, exist_ok=True)
        if config.addressing.weight:
            addressed = AddressingLoss(loss, student, PlainTemplate(tokenizer), config.addressing)
            run(addressed, AddressedRows(rows, config.addressing), config.loop)
        else:
            run(loss, rows, config.loop)
        save_model(student, tokenizer, path)
    loaded: NPTForCausalLM = NPTForCausalLM.from_pretrained(path)
    return loaded
