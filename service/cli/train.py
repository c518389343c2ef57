"""`npt train reference | phase1 | finetune`: training, resumable; under `accelerate launch` on many GPUs."""

from pathlib import Path
from typing import Annotated, cast

import typer

from service.cli.failing import told_in_one_line

app = typer.Typer(help="Train models; every command resumes where it stopped.", no_args_is_help=True)

Out = Annotated[Path, typer.Option(help="Folder for logs, checkpoints and results.")]
Data = Annotated[Path | None, typer.Option(help="Folder with wiki-leads.jsonl.xz, for natural text.")]
Seed = Annotated[int, typer.Option(help="Of weights, data and order.")]
Precision = Annotated[str, typer.Option(help="bf16, fp16 or no.")]
Compile = Annotated[bool, typer.Option(help="Use torch.compile.")]
Shard = Annotated[
    bool, typer.Option("--shard", help="Under a launcher: split the model among the processes.")
]
Accumulate = Annotated[int, typer.Option(min=1, help="Batches of each process in a step.")]
Steps = Annotated[int, typer.Option(min=1, help="Optimizer steps.")]


@app.command("reference")
def reference(
    out: Out = Path("runs/reference"),
    model: Annotated[Path, typer.Option(help="Where the finished checkpoint goes.")] = Path(
        "runs/reference/model"
    ),
    data: Data = None,
    teacher_steps: Steps = 1600,
    equivalence_steps: Steps = 1100,
    batch: Annotated[int, typer.Option(min=1, help="Rows per step.")] = 32,
    length: Annotated[int, typer.Option(min=16, help="Tokens per row.")] = 256,
    seed: Seed = 0,
    precision: Precision = "bf16",
    compile_: Annotated[bool, typer.Option("--compile/--no-compile")] = True,
) -> None:
    """Tokenizer, teacher, equivalence, calibration, model card: the shipped checkpoint from nothing."""
    from npt_core.checkpoint import CheckpointError
    from npt_core.training.reference import REFERENCE_PLASTICITY, ReferenceConfig, assemble

    config = ReferenceConfig(
        out=out,
        data=data,
        teacher_steps=teacher_steps,
        equivalence_steps=equivalence_steps,
        batch=batch,
        length=length,
        seed=seed,
        mixed_precision=precision,
        compile=compile_,
    )
    with told_in_one_line(CheckpointError, ValueError, OSError):
        assemble(config, REFERENCE_PLASTICITY, model)
    typer.echo(f"finished: {model}")


@app.command("phase1")
def phase1(
    teacher: Annotated[Path, typer.Option(help="A Llama checkpoint folder.")],
    out: Out,
    layers: Annotated[str, typer.Option(help="all, upper_half, or indices: 3,4,5")] = "all",
    rank: Annotated[int, typer.Option(min=1, help="Adapter rank.")] = 64,
    steps: Steps = 500,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 1e-3,
    hidden_weight: Annotated[float, typer.Option(help="Weight of the hidden-state loss.")] = 1.0,
    modulation_weight: Annotated[float, typer.Option(help="Weight of the modulation norm.")] = 1e-4,
    final_hidden_only: Annotated[bool, typer.Option(help="Compare the last layer alone.")] = False,
    freeze_base: Annotated[bool, typer.Option(help="Train the adapters alone.")] = False,
    address_weight: Annotated[float, typer.Option(min=0.0, help="Weight of the loss on keys.")] = 0.2,
    data: Data = None,
    seed: Seed = 0,
    precision: Precision = "bf16",
    compile_: Annotated[bool, typer.Option("--compile/--no-compile")] = True,
    shard: Shard = False,
    accumulate: Accumulate = 1,
) -> None:
    """Equivalence: convert a Llama to V2 and train it to do what its teacher does."""
    from npt_core.checkpoint import CheckpointError
    from npt_core.config import LayerSpec
    from npt_core.training.addressing import AddressingConfig
    from npt_core.training.corpus import CorpusConfig
    from npt_core.training.equivalence import EquivalenceConfig
    from npt_core.training.loop import LoopConfig
    from npt_core.training.phase1 import Phase1Config, train_phase1
    from service.cli.layers import parse_layers

    losses = EquivalenceConfig(hidden_weight, modulation_weight, final_hidden_only, freeze_base)
    loop = LoopConfig(
        out,
        steps,
        learning_rate,
        seed=seed,
        mixed_precision=precision,
        compile=compile_,
        accumulate=accumulate,
        sharded=shard,
    )
    config = Phase1Config(
        teacher=teacher,
        loop=loop,
        corpus=CorpusConfig(data=data),
        layers=cast(LayerSpec, parse_layers(layers)),
        rank=rank,
        losses=losses,
        addressing=AddressingConfig(weight=address_weight),
    )
    with told_in_one_line(CheckpointError, ValueError, OSError):
        train_phase1(config)
    typer.echo(f"finished: {out / 'model'}")


@app.command("finetune")
def finetune(
    model: Annotated[Path, typer.Option(help="A checkpoint folder.")],
    out: Out,
    preset: Annotated[str, typer.Option(help="factual_recall, reasoning or creative.")],
    steps: Steps = 200,
    data: Data = None,
    seed: Seed = 0,
    precision: Precision = "bf16",
    compile_: Annotated[bool, typer.Option("--compile/--no-compile")] = True,
    shard: Shard = False,
) -> None:
    """Phase 2: fine-tune for a use."""
    from npt_core.checkpoint import CheckpointError
    from npt_core.training import finetuning

    config = finetuning.FinetuningConfig(
        model=model,
        out=out,
        preset=preset,
        steps=steps,
        data=data,
        seed=seed,
        mixed_precision=precision,
        compile=compile_,
        sharded=shard,
    )
    with told_in_one_line(CheckpointError, ValueError, OSError):
        finetuning.finetune(config)
    typer.echo(f"finished: {out / 'model'}")
