"""Where models go, on machines with and without a GPU."""

from __future__ import annotations

import pytest
import torch

from npt_core.placement import Placement, Unplaceable, placed

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(params=[False, True], ids=["no GPU", "a GPU"])
def there(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param)
    return bool(request.param)


def test_auto_takes_what_is_there(there: bool) -> None:
    assert placed("auto", "auto") == (
        Placement(GPU, torch.bfloat16) if there else Placement(CPU, torch.float32)
    )
    assert placed("cpu", "auto") == (CPU, torch.float32)
    assert placed("cpu", "bfloat16") == (CPU, torch.bfloat16)
    assert placed("auto", "float16") == (GPU if there else CPU, torch.float16)


def test_what_cannot_be_had_is_refused(there: bool) -> None:
    with pytest.raises(Unplaceable, match="not float32" if there else "no CUDA device"):
        placed("cuda", "float32")
    if there:
        with pytest.raises(Unplaceable, match="not float32"):
            placed("auto", "float32")
