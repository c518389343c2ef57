"""`npt convert` and `npt compare` on a small Llama folder."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from npt_core.convert import load_model
from service.cli import app
from tests.npt_core.tiny import new_llama, tokenizer


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    new_llama().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def test_layers_are_converted_and_the_tokenizer_comes_along(llama: Path, tmp_path: Path) -> None:
    target = tmp_path / "npt"
    done = run("convert", str(llama), str(target), "--layers", "1", "--variant", "v2")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{target}  1:v2\n"
    assert load_model(target).config.npt_layers == {"1": "v2"}
    assert (target / "tokenizer.json").read_bytes() == (llama / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--layers", "7"), "7"),
        (("--layers", "some"), "neither all, upper_half nor numbers"),
        (("--variant", "v3"), "v3"),
        (("--rank", "0"), "rank"),
    ],
)
def test_senseless_conversion_is_refused_in_one_line(
    llama: Path, tmp_path: Path, options: tuple[str, ...], reason: str
) -> None:
    done = run("convert", str(llama), str(tmp_path / "npt"), *options)
    assert done.exit_code == 1
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


def test_folder_that_holds_something_is_not_overwritten(llama: Path) -> None:
    done = run("convert", str(llama), str(llama))
    assert done.exit_code == 1
    assert "is not empty" in done.stderr


def test_one_checkpoint_is_shown_as_v1_and_v2(llama: Path) -> None:
    done = run("compare", str(llama), "--repeats", "1")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0].split() == ["base", "v1", "v2"]


def test_several_checkpoints_are_compared(llama: Path) -> None:
    done = run("compare", str(llama), str(llama), "--repeats", "1")
    assert done.exit_code == 0, done.output
