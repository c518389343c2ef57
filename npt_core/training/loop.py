"""One training loop for every phase: progress bar, JSONL log, loss curve, checkpoints, resumption.

`accelerate` brings mixed precision and many processes; a phase brings a module whose forward takes
a batch and returns named losses, the first of which (`loss`) is minimised.
"""

import json
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from npt_core.training.data import Rows
from npt_core.training.sharding import frozen_in, load_shards, save_shards, shard

WARMUP_SHARE, DECAY_SHARE = 0.03, 0.4
LOG_EVERY = 10


@dataclass(frozen=True)
class LoopConfig:
    """How long, how fast, where to."""

    out: Path
    steps: int
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    gradient_clip: float = 1.0
    checkpoint_every: int = 100
    mixed_precision: str = "bf16"
    compile: bool = True
    seed: int = 0
    workers: int = 1
    accumulate: int = 1
    """Batches of each process in a step: one process with two takes the steps of two with one."""
    sharded: bool = False
    """Split the model among the processes; without, each holds all of it."""


@dataclass
class Progress:
    """What a checkpoint remembers besides weights and optimizer states."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    """Losses since the last log entry, over `summed` steps."""
    summed: int = 0

    def state_dict(self) -> dict[str, Any]:
        """For accelerate's checkpoints."""
        return {"step": self.step, "tokens": self.tokens, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From accelerate's checkpoints."""
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warmup, constant, linear decay to zero over the last `DECAY_SHARE`."""
    warm = min(1.0, (step + 1) / max(1, WARMUP_SHARE * steps))
    return min(warm, max(0.0, (steps - step) / (DECAY_SHARE * steps)))


def optimizers(module: nn.Module, config: LoopConfig) -> list[Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, norms and heads."""
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    inner = [p for n, p in named if p.dim() == 2 and not ("embed" in n or "lm_head" in n)]
    outer = [p for n, p in named if p.dim() != 2 or "embed" in n or "lm_head" in n]
    made: list[Optimizer] = []
    if inner:
        made.append(
            Muon(
                inner,
                lr=config.learning_rate,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    if outer:
        made.append(AdamW(outer, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True))
    return made


def run(module: nn.Module, rows: Rows, config: LoopConfig) -> Progress:
    """Trains `module` in place; resumes from the checkpoint in `config.out` if there is one.

    A sharded model goes without `compile`. Raises `NotLaunched` for one in a single process, ValueError for
    one in fp16.
    """
    accelerator = Accelerator(mixed_precision=config.mixed_precision, project_dir=str(config.out))
    set_seed(config.seed)
    progress = Progress()
    training = (_Sharded if config.sharded else _Whole)(module, accelerator, config, progress)
    if (checkpoint := latest_checkpoint(config.out)) is not None:
        training.load(checkpoint)
        if accelerator.is_main_process:
            _forget_after(config.out / "log.jsonl", progress.step)
    first = progress.step * config.accumulate
    rows.place(first, accelerator.process_index, accelerator.num_processes)
    batches = iter(
        DataLoader(
            rows,
            batch_size=None,
            num_workers=config.workers,
            prefetch_factor=4 if config.workers else None,
        )
    )
    bar = tqdm(total=config.steps, initial=progress.step, disable=not accelerator.is_main_process)
    training.module.train()
    while progress.step < config.steps:
        begin = time.perf_counter()
        losses = _step(training, batches, progress.step)
        tokens = rows.tokens * accelerator.num_processes * config.accumulate
        _count(progress, losses, tokens, time.perf_counter() - begin)
        bar.update()
        last = progress.step == config.steps
        if last or progress.step % LOG_EVERY == 0:
            means = _means(accelerator, progress)
            if accelerator.is_main_process:
                bar.set_postfix(_log(progress, config, means))
        if last or progress.step % config.checkpoint_every == 0:
            _save(training, config.out, progress.step)
    bar.close()
    if accelerator.is_main_process:
        plot(config.out)
    accelerator.wait_for_everyone()
    return progress


class _Whole:
    """Every process holds all of the model; accelerate averages the gradients."""

    def __init__(
        self, module: nn.Module, accelerator: Accelerator, config: LoopConfig, progress: Progress
    ) -> None:
        self.accelerator, self.config = accelerator, config
        for frozen in frozen_in(module):
            frozen.to(accelerator.device)
        made = optimizers(module, config)
        trained: nn.Module = torch.compile(module) if config.compile else module  # type: ignore[assignment]
        self.module: nn.Module = accelerator.prepare(trained)
        self.steppers: list[Any] = [accelerator.prepare(o) for o in made]
        accelerator.register_for_checkpointing(progress)

    def losses(self, batch: Iterable[Tensor]) -> dict[str, Tensor]:
        """Of one batch, by name."""
        found: dict[str, Tensor] = self.module(*batch)
        return found

    def save(self, folder: Path) -> None:
        """Everything that a resumed run needs."""
        self.accelerator.save_state(str(folder))

    def load(self, folder: Path) -> None:
        """The inverse."""
        self.accelerator.load_state(str(folder))


class _Sharded:
    """Every process holds a part of the model."""

    def __init__(
        self, module: nn.Module, accelerator: Accelerator, config: LoopConfig, progress: Progress
    ) -> None:
        if config.mixed_precision == "fp16":
            raise ValueError("a sharded model trains in bf16 or float32: fp16 would need its losses scaled")
        self.accelerator, self.config = accelerator, config
        shard(module, accelerator.device)
        self.module = module
        self.steppers: list[Any] = optimizers(module, config)
        self._progress = progress

    def losses(self, batch: Iterable[Tensor]) -> dict[str, Tensor]:
        """Of one batch, by name."""
        with self.accelerator.autocast():
            found: dict[str, Tensor] = self.module(*batch)
            return found

    def save(self, folder: Path) -> None:
        """Everything that a resumed run needs."""
        save_shards(self.module, self.steppers, self._progress, folder)

    def load(self, folder: Path) -> None:
        """The inverse."""
        load_shards(self.module, self.steppers, self._progress, folder)


_Training = _Whole | _Sharded


def latest_checkpoint(out: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    found = out.glob("checkpoint-*")
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _save(training: _Training, out: Path, step: int) -> None:
    """Writes `checkpoint-{step}` beside the older one, which goes only when the new one is whole."""
    unfinished, accelerator = out / "unfinished", training.accelerator
    training.save(unfinished)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        older = latest_checkpoint(out)
        unfinished.rename(out / f"checkpoint-{step}")
        if older is not None:
            shutil.rmtree(older)
    accelerator.wait_for_everyone()


def _forget_after(log: Path, step: int) -> None:
    """Drops the entries of steps that were lost and will be taken again."""
    if log.exists():
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["step"] <= step]
        log.write_text("".join(kept), encoding="utf-8")


def _step(training: _Training, batches: Iterator[tuple[Tensor, ...]], step: int) -> dict[str, Tensor]:
    """One step over the mean of its batches; their mean losses."""
    accelerator, config = training.accelerator, training.config
    factor = learning_rate_factor(step, config.steps)
    means: dict[str, Tensor] = {}
    for batch in islice(batches, config.accumulate):
        losses = training.losses(t.to(accelerator.device) for t in batch)
        accelerator.backward(losses["loss"] / config.accumulate)
        for name, loss in losses.items():
            means[name] = means.get(name, 0.0) + loss.detach() / config.accumulate
    accelerator.clip_grad_norm_(training.module.parameters(), config.gradient_clip)
    for stepper in training.steppers:
        for group in stepper.param_groups:
            group["lr"] = config.learning_rate * factor
        stepper.step()
        stepper.zero_grad()
    return means


def _count(progress: Progress, losses: dict[str, Tensor], tokens: int, seconds: float) -> None:
    progress.step += 1
    progress.summed += 1
    progress.tokens += tokens
    progress.seconds += seconds
    for name, value in losses.items():
        progress.sums[name] = progress.sums.get(name, 0.0) + value.item()


def _means(accelerator: Accelerator, progress: Progress) -> dict[str, float]:
    """Mean losses of all processes since the last time."""
    totals = torch.tensor(list(progress.sums.values()), dtype=torch.float64).to(accelerator.device)
    means = accelerator.reduce(totals / progress.summed, reduction="mean").tolist()
    found = dict(zip(progress.sums, means, strict=True))
    progress.sums.clear()
    progress.summed = 0
    return found


def _log(progress: Progress, config: LoopConfig, means: dict[str, float]) -> dict[str, str]:
    entry = {"step": progress.step, "tokens": progress.tokens, "seconds": progress.seconds, **means}
    with (config.out / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(entry) + "\n")
    return {
        **{name: f"{value:.4f}" for name, value in means.items()},
        "tok/s": f"{progress.tokens / progress.seconds:.0f}",
    }


def plot(out: Path) -> Path:
    """Draws the losses of `out/log.jsonl` into `out/loss.png`."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for name in (k for k in entries[-1] if k not in ("step", "tokens", "seconds")):
        axes.plot([e["tokens"] / 1e6 for e in entries], [e[name] for e in entries], label=name)
    axes.set(xlabel="million tokens", ylabel="loss", yscale="log")
    axes.legend()
    figure.tight_layout()
    figure.savefig(out / "loss.png", dpi=120)
    plt.close(figure)
    return out / "loss.png"
