from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from npt_core.compare import compare, variants_of
from npt_core.convert import convert_llama_to_npt
from tests.conftest import MakeLlama
from tests.npt_core.helpers import awakened


def test_v1_equals_its_base_and_v2_does_not(llama: LlamaForCausalLM, ids: Tensor) -> None:
    base, v1, v2 = compare(variants_of(llama), ids[:1]).reports
    assert (base.kl, base.max_logit_difference) == (0, 0)
    assert (v1.kl, v1.max_logit_difference) == (0, 0)
    assert v1.next_tokens == base.next_tokens
    assert v1.layer_norms == base.layer_norms
    assert v2.kl > 0
    assert v2.max_logit_difference > 0
    assert [report.variants[0] for report in (base, v1, v2)] == ["llama", "v1", "v2"]


def test_parameters_and_norms_are_counted(llama: LlamaForCausalLM, ids: Tensor) -> None:
    model = awakened(convert_llama_to_npt(llama, [3], "v2", rank=5))
    (report,) = compare({"npt": model}, ids[:1], top=4).reports
    assert report.adapter_parameters == 5 * 32 + 2 * 5 * 48
    assert report.parameters == llama.num_parameters() + report.adapter_parameters
    hidden = model(ids[:1], output_hidden_states=True).hidden_states
    assert report.layer_norms[0] == pytest.approx(hidden[1].norm(dim=-1).mean().item())
    assert len(report.layer_norms) == 4
    assert len(report.next_tokens) == 4
    assert report.next_tokens[0].token == model(ids[:1]).logits[0, -1].argmax()
    assert report.seconds > 0


def test_kl_is_the_mean_over_positions(llama: LlamaForCausalLM, ids: Tensor) -> None:
    models = variants_of(llama)
    p, q = (models[name](ids[:1]).logits[0].log_softmax(-1) for name in ("base", "v2"))
    wanted = torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
    assert compare(models, ids[:1]).reports[2].kl == pytest.approx(wanted.item(), rel=1e-4)


def test_the_table_has_a_column_for_each_model(llama: LlamaForCausalLM, ids: Tensor) -> None:
    comparison = compare(variants_of(llama, [2, 3]), ids[:1])
    lines = comparison.table().splitlines()
    assert lines[0].split() == ["base", "v1", "v2"]
    assert lines[1].split("  ")[-1].strip() == "2 llama, 2 v2"
    assert len({len(line) for line in lines}) == 1
    assert [line.split()[0] for line in lines].count("norm,") == 4
    token = comparison.reports[0].next_tokens[0].token
    assert f"'<{token}>'" in comparison.table(lambda t: f"<{t}>")


def test_models_of_different_depth_fit_in_one_table(make_llama: MakeLlama, ids: Tensor) -> None:
    models = {"deep": make_llama(), "flat": make_llama(num_hidden_layers=2)}
    assert compare(models, ids[:1]).table().splitlines()[-1].split()[-1] == "-"


def test_a_directory_can_be_compared(llama: LlamaForCausalLM, ids: Tensor, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path)
    base, v1, _ = compare(variants_of(tmp_path), ids[:1]).reports
    assert base.adapter_parameters == 0
    assert v1.kl == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"models": {}}, "no models"),
        ({"input_ids": torch.zeros(2, 3, dtype=torch.long)}, "must be"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "must be"),
        ({"input_ids": torch.tensor([[61]])}, "0 to 60"),
        ({"input_ids": torch.tensor([[-1]])}, "0 to 60"),
        ({"top": 0}, "top"),
        ({"repeats": 0}, "repeats"),
    ],
)
def test_a_wrong_call_is_refused(llama: LlamaForCausalLM, values: dict[str, Any], message: str) -> None:
    call = {"models": {"base": llama}, "input_ids": torch.tensor([[1, 5]]), **values}
    with pytest.raises(ValueError, match=message):
        compare(**call)


def test_different_vocabularies_are_refused(make_llama: MakeLlama) -> None:
    models = {"a": make_llama(), "b": make_llama(vocab_size=60)}
    with pytest.raises(ValueError, match=r"\[60, 61\]"):
        compare(models, torch.tensor([[1]]))
