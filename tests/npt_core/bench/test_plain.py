from pathlib import Path

import pytest
import torch

from npt_core.bench.plain import load_teacher, without_adapters
from npt_core.convert import convert_npt_to_llama
from tests.npt_core.tiny import new_llama, new_npt


def test_model_without_adapters_is_a_llama_with_its_weights() -> None:
    model = new_npt()
    plain = without_adapters(model)
    assert not plain.config.npt_layers
    assert model.config.npt_layers
    expected = {name: w for name, w in model.state_dict().items() if ".adapter." not in name}
    llama = convert_npt_to_llama(plain).state_dict()
    assert llama.keys() == expected.keys()
    assert all(torch.equal(llama[name], weight) for name, weight in expected.items())


def test_teacher_of_other_sizes_is_refused(tmp_path: Path) -> None:
    new_llama(intermediate_size=64).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="intermediate_size 64 where the model has 48"):
        load_teacher(tmp_path, new_npt())


def test_teacher_is_a_plain_llama(tmp_path: Path) -> None:
    new_llama().save_pretrained(tmp_path / "llama")
    new_npt().save_pretrained(tmp_path / "npt")
    ids = torch.tensor([[5, 6, 7]])
    teacher = load_teacher(tmp_path / "llama", new_npt())
    assert torch.equal(teacher(ids).logits, new_llama()(ids).logits)
    with pytest.raises(ValueError, match="no plain Llama"):
        load_teacher(tmp_path / "npt", new_npt())
