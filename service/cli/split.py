"""`npt generate --model` under `torchrun`: one model in the memory of several GPUs."""

from typing import Any

import typer

from service.cli.failing import fail, told_in_one_line

UNDERSTOOD = {"prompt", "context", "max_new_tokens", "temperature", "top_p", "seed", "weights_version"}


def answer(model: str, body: dict[str, Any]) -> None:
    """Continue the prompt in `body` with the checkpoint and the facts that lie beside it; the first process
    prints the text.
    """
    from transformers.utils.logging import disable_progress_bar

    from npt_core.bank import BankError
    from npt_core.checkpoint import CheckpointError
    from npt_core.generation import Decoding
    from npt_core.placement import Unplaceable
    from npt_core.split import leader, load_split
    from service.bringing import read_bank_file
    from service.cli.launcher import processes
    from service.schemas.generate import GenerateIn

    if unknown := body.keys() - UNDERSTOOD:
        fail(f"{', '.join(sorted(unknown))}: not for a model that is split among processes")
    disable_progress_bar()
    asked = GenerateIn(**body)
    with told_in_one_line(CheckpointError, Unplaceable, BankError):
        split = load_split(model, processes())
        if split.bank_file is not None:
            split.bank.publish(1, read_bank_file(split.bank_file)[1])
    if not 0 <= (asked.weights_version or 0) <= split.bank.version:
        fail(f"there is no version {asked.weights_version}: the newest is {split.bank.version}")
    decoding = Decoding(
        asked.max_new_tokens,
        split.template.eos_token_ids,
        asked.temperature,
        asked.top_p,
        asked.seed or 0,
    )
    prompt = split.template.with_context(asked.prompt, asked.context)
    text = split.answers([prompt], decoding, asked.weights_version)[0]
    if leader():
        typer.echo(text)
