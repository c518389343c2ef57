"""What installing compiles, and that a machine without a compiler can be installed on."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import Any

import pytest
from hatchling.bridge.app import Application

import hatch_build
from npt_core.native.library import FOLDER, Library
from tests.programs import skip_or_fail


def built(root: Path) -> dict[str, Any]:
    """What the hook makes of a copy of the project's kernels."""
    folder = root / hatch_build.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(FOLDER / "kernels.c", folder)
    data: dict[str, Any] = {"artifacts": []}
    arguments: list[Any] = [str(root), {}, None, None, str(root), "wheel"]
    hatch_build.Hook(*arguments, Application()).initialize("standard", data)
    return data


def test_kernels_are_compiled_into_a_wheel_for_this_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("cc") is None:
        skip_or_fail("no C compiler")
    monkeypatch.setitem(hatch_build.UNITS, platform.machine(), {"generic": ""})  # one is enough
    data = built(tmp_path)
    (name,) = data["artifacts"]
    assert name == "npt_core/native/kernels-generic.so"
    assert data["tag"] == f"py3-none-linux_{platform.machine()}"
    assert Library(tmp_path / name).panel == 8


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_without_a_compiler_that_works_there_are_no_kernels(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor those of an earlier version of the source."""
    stale = tmp_path / hatch_build.FOLDER / "kernels-avx2.so"
    stale.parent.mkdir(parents=True)
    stale.touch()
    monkeypatch.setenv("CC", compiler)
    assert built(tmp_path) == {"artifacts": []}
    assert not stale.exists()
    assert "torch's operations" in "".join(capsys.readouterr())
