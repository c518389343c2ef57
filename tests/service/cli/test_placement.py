"""Devices and dtypes that cannot be had are refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from service.cli import app


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--device", "cuda"), "no CUDA device"),
        (("--device", "tpu"), "none of auto, cpu, cuda"),
        (("--dtype", "int8"), "none of auto, float32, bfloat16, float16"),
        (("--only", "overhead,peer"), "'peer' is none of startup, peers, overhead"),
    ],
)
def test_bench_refuses(
    options: tuple[str, ...], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(app, ("bench", "--out", str(tmp_path), *options))
    assert done.exit_code == 1
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [("NPT_DEVICE", "cuda", "no CUDA device"), ("NPT_DTYPE", "int8", "dtype: Input should be")],
)
def test_serve_refuses(
    setting: str, value: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(setting, value)
    done = CliRunner().invoke(app, ("serve", "--data", str(tmp_path)))
    assert done.exit_code == 1
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
