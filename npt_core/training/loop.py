"""One training loop for every phase: progress bar, JSONL log, loss curve, checkpoints, resumption.

`accelerate` brings mixed precision and many processes; a phase brings a module whose forward takes
a batch and returns named losses, the first of which (`loss`) is minimised.
"""

import json
import shutil
import time
from dataclasses import dataclass, field
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
    """Trains `module` in place; resumes from the checkpoint in `config.out` if there is one."""
    precision = config.mixed_precision
    accelerator = Accelerator(mixed_precision=precision, project_dir=str(config.out))
    set_seed(config.seed)
    made = optimizers(module, config)
    trained: nn.Module = torch.compile(module) if config.compile else module  # type: ignore[assignment]
    trained = accelerator.prepare(trained)
    steppers = [accelerator.prepare(o) for o in made]
    progress = Progress()
    accelerator.register_for_checkpointing(progress)
    if (checkpoint := latest_checkpoint(config.out)) is not None:
        accelerator.load_state(str(checkpoint))
        if accelerator.is_main_process:
            _forget_after(config.out / "log.jsonl", progress.step)
    rows.place(progress.step, accelerator.process_index, accelerator.num_processes)
    batches = iter(
        DataLoader(
            rows,
            batch_size=None,
            num_workers=config.workers,
            prefetch_factor=4 if config.workers else None,
        )
    )
    bar = tqdm(total=config.steps, initial=progress.step, disable=not accelerator.is_main_process)
    trained.train()
    while progress.step < config.steps:
        begin = time.perf_counter()
        losses = _step(accelerator, trained, steppers, next(batches), progress.step, config)
        _count(
            progress,
            losses,
            rows.tokens * accelerator.num_processes,
            time.perf_counter() - begin,
        )
        bar.update()
        last = progress.step == config.steps
        if (last or progress.step % LOG_EVERY == 0) and accelerator.is_main_process:
            bar.set_postfix(_log(progress, config))
        if last or progress.step % config.checkpoint_every == 0:
            _save(accelerator, config.out, progress.step)
    bar.close()
    if accelerator.is_main_process:
        plot(config.out)
    accelerator.wait_for_everyone()
    return progress


def latest_checkpoint(out: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    found = out.glob("checkpoint-*")
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _save(accelerator: Accelerator, out: Path, step: int) -> None:
    """Writes `checkpoint-{step}` beside the older one, which goes only when the new one is whole."""
    unfinished = out / "unfinished"
    accelerator.save_state(str(unfinished))
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


def _step(
    accelerator: Accelerator,
    module: nn.Module,
    steppers: list[Any],
    batch: tuple[Tensor, ...],
    step: int,
    config: LoopConfig,
) -> dict[str, Tensor]:
    factor = learning_rate_factor(step, config.steps)
    losses: dict[str, Tensor] = module(*(t.to(accelerator.device) for t in batch))
    accelerator.backward(losses["loss"])
    accelerator.clip_grad_norm_(module.parameters(), config.gradient_clip)
    for stepper in steppers:
        for group in stepper.param_groups:
            group["lr"] = config.learning_rate * factor
        stepper.step()
        stepper.zero_grad()
    return losses


def _count(progress: Progress, losses: dict[str, Tensor], tokens: int, seconds: float) -> None:
    progress.step += 1
    progress.summed += 1
    progress.tokens += tokens
    progress.seconds += seconds
    for name, value in losses.items():
        progress.sums[name] = progress.sums.get(name, 0.0) + value.item()


def _log(progress: Progress, config: LoopConfig) -> dict[str, str]:
    means = {name: total / progress.summed for name, total in progress.sums.items()}
    progress.sums.clear()
    progress.summed = 0
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
