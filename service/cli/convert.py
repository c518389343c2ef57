"""`npt convert`."""

import shutil
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from service.cli.failing import fail, told_in_one_line
from service.cli.layers import parse_layers

COPIED = ("tokenizer*", "special_tokens_map.json", "*.jinja", "vocab*", "merges.txt")
"""A checkpoint without its tokenizer cannot be served."""


def command(
    source: Annotated[str, typer.Argument(help="Folder or hub id of a Llama or NPT checkpoint.")],
    target: Annotated[Path, typer.Argument(help="Folder to write.")],
    layers: Annotated[str, typer.Option(help="all, upper_half, or numbers such as 2,3.")] = "all",
    variant: Annotated[str, typer.Option(help="v1 (exact) or v2 (to be trained).")] = "v1",
    rank: Annotated[int | None, typer.Option(help="Rank of new adapters.")] = None,
    modulation_type: Annotated[str | None, typer.Option(help="additive, multiplicative or both.")] = None,
    seed: Annotated[int, typer.Option(help="For new adapters.")] = 0,
) -> None:
    """Convert layers of a checkpoint to V1 or V2."""
    from npt_core.checkpoint import CheckpointError, resolve_folder
    from npt_core.convert import convert_llama_to_npt

    if target.exists() and any(target.iterdir()):
        fail(f"{target} is not empty")
    with told_in_one_line(CheckpointError, ValueError):
        folder = resolve_folder(source)
        model = convert_llama_to_npt(
            folder,
            cast(Any, parse_layers(layers)),
            cast(Any, variant),
            rank,
            cast(Any, modulation_type),
            seed,
        )
        model.save_pretrained(target)
    for pattern in COPIED:
        for file in folder.glob(pattern):
            shutil.copyfile(file, target / file.name)
    converted = model.config.npt_layers or {}
    typer.echo(f"{target}  {', '.join(f'{i}:{kind}' for i, kind in converted.items())}")
