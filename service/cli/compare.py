"""`npt compare`."""

from typing import Annotated, Any, cast

import typer

from service.cli.failing import told_in_one_line
from service.cli.layers import parse_layers


def command(
    models: Annotated[list[str], typer.Argument(help="One checkpoint, to see it as V1 and V2; or several.")],
    prompt: Annotated[str, typer.Option(help="The input.")] = "Who is the CEO of TechCorp?",
    layers: Annotated[
        str, typer.Option(help="Of one checkpoint: all, upper_half, or numbers such as 2,3.")
    ] = "all",
    top: Annotated[int, typer.Option(help="Likeliest next tokens to show.")] = 3,
    repeats: Annotated[int, typer.Option(help="Timed runs.")] = 3,
) -> None:
    """Compare models on one input: outputs, norms, parameters, time."""
    import torch
    from transformers import AutoTokenizer

    from npt_core.checkpoint import CheckpointError, load_checkpoint, resolve_folder
    from npt_core.compare import compare, variants_of

    with told_in_one_line(CheckpointError, ValueError, OSError):
        tokenizer = AutoTokenizer.from_pretrained(resolve_folder(models[0]))
        if len(models) == 1:
            candidates = variants_of(models[0], cast(Any, parse_layers(layers)))
        else:
            candidates = {name: load_checkpoint(name) for name in models}
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        compared = compare(candidates, ids, top=top, repeats=repeats)
    typer.echo(compared.table(lambda token: str(tokenizer.decode([token]))))
