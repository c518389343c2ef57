"""The script runs, with shapes that a CPU computes in seconds; and it counts what is computed."""

import pytest
import torch

from benchmarks import shapes_8b
from npt_core.bench import roofline

TINY = (
    "--device cpu --dtype float32 --rows 1,3 --columns 0,5 --text 24 --texts 2 --reading 40 --steps 1 "
    "--seconds 0.01 --layers 2 --d-model 64 --d-ffn 96 --heads 8 --vocabulary 5000"
)


def test_every_table_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(roofline._BIG, "cpu", 2**22)
    monkeypatch.setattr(shapes_8b, "REFERENCE_KEYS", 100)
    torch.manual_seed(0)
    lines = list(shapes_8b.table(shapes_8b.parsed(TINY.split())))
    assert lines[0].startswith("CPU, torch.float32, ")
    assert [line.split("|")[1:3] for line in lines if line.startswith(("| 0 ", "| 5 "))] == [
        [" 0 ", " 1 "],
        [" 0 ", " 3 "],
        [" 5 ", " 1 "],
        [" 5 ", " 3 "],
    ]
    reading, *answering, learning = lines[-6:]
    assert reading.startswith("Reading 2 texts of 40 tokens: ")
    assert [line.split("|")[1] for line in answering[2:]] == [" 1 ", " 3 "]
    assert learning.startswith("Learning one fact on cpu: ")
    assert all(stage in learning for stage in ("study ", "write ", "verify "))


def test_reading_counts_only_what_is_multiplied() -> None:
    model = shapes_8b.new_model(shapes_8b.parsed(TINY.split()))
    # q and k, v of two groups, o only within the adapter (64 by 64, both ways), gate, up and down; norms.
    layer = model.model.layers[0]
    multiplied = sum(p.numel() for n, p in layer.named_parameters() if "o_proj" not in n)
    assert layer.variant == "v2"
    assert shapes_8b.reading_flops(model, 1, 1) == 2 * (2 * multiplied + 2 * 64)
    assert shapes_8b.reading_flops(model, 3, 10) == 3 * 10 * 2 * (2 * multiplied + 2 * 64 * 10)
