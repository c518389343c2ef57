"""One process of `test_sharding.py`: a run that is broken off and resumed, split among processes."""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from npt_core.sharding import local
from npt_core.training.corpus import CorpusConfig
from npt_core.training.data import PackedRows
from npt_core.training.equivalence import EquivalenceConfig, EquivalenceLoss
from npt_core.training.loop import LoopConfig, run
from npt_core.training.sharding import save_model
from tests.npt_core.processes import join
from tests.npt_core.tiny import new_llama, new_npt, tokenizer

STEPS, AT = 12, 10


def loss(seed: int) -> EquivalenceLoss:
    """Another student for each seed; tied embeddings, a plain teacher."""
    return EquivalenceLoss(new_npt(seed), new_llama(7), EquivalenceConfig())


def rows(kind: type[PackedRows] = PackedRows) -> PackedRows:
    return kind(tokenizer(), CorpusConfig(), batch=2, length=24, seed=1)


def loop(out: Path, **changes: object) -> LoopConfig:
    settings: dict[str, object] = {"checkpoint_every": AT, "mixed_precision": "no", "compile": False}
    return LoopConfig(out, STEPS, workers=0, **(settings | changes))  # type: ignore[arg-type]


class Broken(PackedRows):
    """Ends the run after the checkpoint."""

    def batch_number(self, number: int) -> tuple[Tensor, Tensor]:
        if number >= 2 * (AT + 1):
            raise KeyboardInterrupt
        return super().batch_number(number)


def main(out: Path) -> None:
    join()
    torch.set_num_threads(1)
    try:
        run(loss(0), rows(Broken), loop(out, sharded=True))
    except KeyboardInterrupt:
        resumed = loss(99)
        run(resumed, rows(), loop(out, sharded=True))
        save_model(resumed.student, tokenizer(), out / "model")
        sys.stdout.write(f"{_held(resumed)} {_held(resumed.frozen[0])}\n")


def _held(module: nn.Module) -> float:
    held = sum(local(p).numel() for p in module.parameters())
    return held / sum(p.numel() for p in module.parameters())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
