"""One process of `test_split.py`: every case's answers with this process's part of the model."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers.utils.logging import disable_progress_bar
from typer.testing import CliRunner

from npt_core.bank import Bank, FactWeights
from npt_core.engine import UnsupportedModel, runner_for
from npt_core.generation import Decoding, generate
from npt_core.sharding import local
from npt_core.split import load_split
from service.cli import app
from tests.npt_core.processes import join

PROMPTS = [[1, 17, 40, 9, 33], [1, 8, 25], [1, 51, 52, 53, 54, 55, 56, 57]]
GREEDY = Decoding(24, end_ids=())
SAMPLED = Decoding(24, end_ids=(), temperature=0.9, top_p=0.95, seed=5)
VERSIONS = (0, 1, 2, 3)


def publish(bank: Bank, folder: Path) -> None:
    """Version 1 brings columns and factors, 2 more of them, 3 a fold in which the first fact dies."""
    one, two = (FactWeights.from_tensors(load_file(folder / f"{n}.facts")) for n in ("one", "two"))
    bank.publish(1, {"one": one})
    bank.publish(2, {"two": two})
    deltas = {int(i): delta for i, delta in load_file(folder / "fold.facts").items()}
    bank.publish(3, {}, ["one"], deltas)


def answers(model: torch.nn.Module) -> dict[str, list[list[int]]]:
    """By what was asked: each version, all of them in one batch, and drawn."""
    told = {f"version {v}": generate(model, PROMPTS, GREEDY, v) for v in VERSIONS}
    told["mixed"] = generate(model, [*PROMPTS, *PROMPTS], GREEDY, [0, 1, 2, 3, 1, 2])
    told["drawn"] = generate(model, PROMPTS, SAMPLED, 2)
    return told


def main(folder: Path) -> None:
    join()
    disable_progress_bar()
    torch.set_num_threads(1)
    told: dict[str, object] = {}
    for case in sorted(path for path in folder.iterdir() if path.is_dir()):
        split = load_split(case, 2)
        publish(split.bank, case)
        whole = sum(p.numel() for p in split.model.parameters())
        held = sum(local(p).numel() for p in split.model.parameters())
        told[case.name] = {"answers": answers(split.model), "held": held / whole}
    told["engine"] = _refusal(split.model)
    for name, arguments in (
        ("generate", ["generate", "Where?", "--model", str(case), "--max-new-tokens", "8"]),
        ("top_k", ["generate", "Where?", "--model", str(case), "--top-k", "3"]),
        ("serve", ["serve", "--model", str(case), "--data", str(folder / "data")]),
    ):
        outcome = CliRunner().invoke(app, arguments)
        told[name] = {"code": outcome.exit_code, "out": outcome.stdout, "err": outcome.stderr}
    sys.stdout.write(json.dumps(told) + "\n")


def _refusal(model: object) -> str:
    try:
        runner_for(model)
    except UnsupportedModel as error:
        return str(error)
    return "none"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
