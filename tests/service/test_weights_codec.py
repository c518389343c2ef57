"""Weights as bytes: a snapshot gives back what serving needs of every fact."""

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from npt_core.bank import Columns, Factors, FactWeights
from service.weights_codec import UndecodableWeights, decode_snapshot, encode_snapshot


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def columns(count: int) -> Columns:
    return Columns(noise(count, 4), noise(count, 6), noise(count), noise(count, 9).half())


FACTS = {
    "fact_b": FactWeights({2: columns(3), 5: columns(1)}),
    "fact_a": FactWeights({5: columns(2)}, {(2, "gate_proj"): Factors(noise(1, 9), noise(1, 6))}),
    "fact_c": FactWeights({5: columns(0)}),
    "fact_d": FactWeights(),
}


def test_snapshot_holds_what_serving_needs() -> None:
    found = decode_snapshot(encode_snapshot(FACTS))
    assert found.keys() == FACTS.keys()
    for name, weights in FACTS.items():
        given, read = weights.to_tensors(), found[name].to_tensors()
        assert given.keys() == read.keys()
        for part, tensor in given.items():
            if part.endswith(".inputs"):
                assert read[part].shape == (len(tensor), 0)
            else:
                assert torch.equal(read[part], tensor)


def test_same_facts_give_the_same_bytes() -> None:
    assert encode_snapshot(FACTS) == encode_snapshot(dict(reversed(FACTS.items())))


def test_snapshot_of_no_fact_is_one() -> None:
    assert decode_snapshot(encode_snapshot({})) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"facts": torch.tensor([255, 254], dtype=torch.uint8)},
        {"facts": torch.tensor(list(b"fact_a"), dtype=torch.uint8)},
        {"columns.5.keys": torch.zeros(3)},
        {"columns.5.keys.shapes": torch.zeros(4, 2, dtype=torch.int64)},
        {"columns.5.keys.shapes": torch.zeros(4, dtype=torch.int64)},
        {"columns.9.keys": torch.zeros(3)},
        {"other": torch.zeros(0), "other.shapes": torch.zeros(4, 2, dtype=torch.int64)},
    ],
)
def test_what_is_no_snapshot_is_refused(change: dict[str, Tensor]) -> None:
    with pytest.raises(UndecodableWeights):
        decode_snapshot(save(load(encode_snapshot(FACTS)) | change))


def test_snapshot_without_its_facts_is_refused() -> None:
    saved = load(encode_snapshot(FACTS))
    del saved["facts"]
    with pytest.raises(UndecodableWeights):
        decode_snapshot(save(saved))
