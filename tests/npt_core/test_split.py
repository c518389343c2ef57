"""Two processes that hold a half each answer as one that holds the whole model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from npt_core.bank import Bank, Columns, Factors, FactWeights, Whitening
from npt_core.checkpoint import load_checkpoint
from npt_core.consolidation import Calibration
from npt_core.convert import convert_llama_to_npt
from npt_core.loading import BANK_FILE
from npt_core.model import NPTForCausalLM
from tests.npt_core.helpers import awakened, mixed_npt
from tests.npt_core.processes import launched
from tests.npt_core.split_process import VERSIONS, answers, publish
from tests.npt_core.tiny import calibrated, new_llama, new_npt, plain_template, tokenizer

SURE = 8
"""Drawn tokens that are compared with those of one process, whose sums round differently."""
CASES: dict[str, Callable[[], NPTForCausalLM]] = {
    "v2": new_npt,
    "plain, v1 and v2": lambda: mixed_npt(new_llama(num_hidden_layers=4)),
    "tied": lambda: awakened(convert_llama_to_npt(new_llama(tie_word_embeddings=True), "all", "v2", rank=6)),
    "heads that do not divide": lambda: awakened(
        convert_llama_to_npt(
            new_llama(hidden_size=24, num_attention_heads=3, num_key_value_heads=3), "all", "v2", rank=6
        )
    ),
    "neurons that do not divide": lambda: awakened(
        convert_llama_to_npt(new_llama(intermediate_size=51), "all", "v1", rank=6)
    ),
    "biases": lambda: _biased(
        convert_llama_to_npt(new_llama(attention_bias=True, mlp_bias=True), "all", "v2", rank=6)
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, a calibration and facts for each case."""
    made = tmp_path_factory.mktemp("split")
    for name, model in CASES.items():
        _write(made / name, model())
    return made


@pytest.fixture(scope="module")
def told(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both processes said."""
    store = tmp_path_factory.mktemp("meeting") / "place"
    outputs = launched(["-m", "tests.npt_core.split_process", str(folder)], store)
    return [json.loads(output.splitlines()[-1]) for output in outputs]


@pytest.mark.parametrize("case", CASES)
def test_answers_equal_those_of_one_process(case: str, folder: Path, told: list[dict[str, Any]]) -> None:
    model = load_checkpoint(folder / case)
    publish(Bank(model, Calibration.load(folder / case).whitening).attach(), folder / case)
    alone = answers(model)
    assert len({json.dumps(alone[f"version {v}"]) for v in VERSIONS}) == len(VERSIONS), "facts do nothing"
    drawn = alone.pop("drawn")
    for process in told:
        said = process[case]["answers"]
        assert {name: said[name] for name in alone} == alone
        # Later, two tokens whose logits differ in the last bits may have changed their ranks.
        assert [each[:SURE] for each in said["drawn"]] == [each[:SURE] for each in drawn]
    assert len({json.dumps(process[case]["answers"]["drawn"]) for process in told}) == 1


def test_each_process_holds_about_half(told: list[dict[str, Any]]) -> None:
    held = [process["v2"]["held"] for process in told]
    # Embeddings, norms and `A` are whole in both.
    assert sum(held) > 1
    assert max(held) < 0.75


def test_generate_prints_one_answer(folder: Path, told: list[dict[str, Any]]) -> None:
    first, second = (process["generate"] for process in told)
    assert (first["code"], second["code"], second["out"]) == (0, 0, "")
    assert first["out"].strip()


def test_what_computes_in_one_process_refuses_to_be_split(told: list[dict[str, Any]]) -> None:
    for process in told:
        assert "whole model" in process["engine"]
        assert (process["top_k"]["code"], process["serve"]["code"]) == (1, 1)
        assert process["top_k"]["err"] == "npt: top_k: not for a model that is split among processes\n"
        assert process["serve"]["err"].startswith("npt: a server computes in one process")
        assert process["serve"]["err"].count("\n") == 1


def _write(folder: Path, model: NPTForCausalLM) -> None:
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    calibration, _ = calibrated(model, plain_template())
    calibration.save(folder)
    for seed, name in enumerate(("one", "two")):
        save_file(_fact(model, calibration.whitening, seed).to_tensors(), folder / f"{name}.facts")
    d, d_ffn = model.config.hidden_size, model.config.intermediate_size
    deltas = {str(i): _noise(70 + i, d, d_ffn).double() / 20 for i in (0, 1)}
    save_file(deltas, folder / "fold.facts")
    _bring(folder, _fact(model, calibration.whitening, 0))


def _fact(model: NPTForCausalLM, whitening: dict[int, Whitening], seed: int) -> FactWeights:
    """Columns that fire on many tokens, and factors of both matrices."""
    d, d_ffn = model.config.hidden_size, model.config.intermediate_size
    columns, factors = {}, {}
    for i in (0, 1):
        width = whitening[i].projection.shape[1]
        keys = F.normalize(_noise(10 * seed + i, 3, width), dim=-1)
        values, inputs = _noise(20 + 10 * seed + i, 3, d), _noise(40 + seed + i, 3, d_ffn)
        columns[i] = Columns(keys, values, torch.full((3,), 0.2), inputs)
        factors[i, "gate_proj"] = Factors(_noise(50 + seed, 2, d_ffn) / 10, _noise(52 + seed, 2, d))
        factors[i, "down_proj"] = Factors(_noise(54 + seed, 2, d) / 10, _noise(56 + seed, 2, d_ffn))
    return FactWeights(columns, factors)


@torch.no_grad()
def _biased(model: NPTForCausalLM) -> NPTForCausalLM:
    for seed, (name, weight) in enumerate(model.named_parameters()):
        if name.endswith(".bias"):
            weight.copy_(_noise(seed, len(weight)))
    return awakened(model)


def _bring(folder: Path, weights: FactWeights) -> None:
    """The fact beside the checkpoint, as an export writes it."""
    fact = {"id": "fact_1", "request": {}, "report": None, "expires_at": None}
    tensors = {f"fact_1/{name}": tensor for name, tensor in weights.to_tensors().items()}
    save_file(tensors, folder / BANK_FILE, metadata={"facts": json.dumps([fact])})


def _noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
