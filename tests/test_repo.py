"""Rules about the tree itself."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("npt_core", "service", "tests", "tools", "benchmarks", "docs", "docker", "k8s")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
TEXTS = sorted(
    path
    for folder in (*FOLDERS, ".ci")
    for path in (ROOT / folder).rglob("*")
    if path.is_file() and path.suffix in {"", ".md", ".py", ".sh", ".toml", ".yaml", ".json"}
) + sorted(path for path in ROOT.iterdir() if path.is_file() and path.suffix != ".lock")
PAGES = [path for path in TEXTS if path.suffix == ".md"]

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_CHECKPOINT_BYTES = 40 * 2**20
"""The repository carries every version of the reference model for ever."""

HOME = re.compile(r"/(?:home|Users|root)/[A-Za-z]")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


@pytest.mark.parametrize("path", SOURCES, ids=_relative)
def test_files_and_functions_stay_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES
    long = [f"{name}: {lines}" for name, lines in _functions(path) if lines > MAX_FUNCTION_LINES]
    assert not long, f"functions over {MAX_FUNCTION_LINES} lines"


def test_no_file_names_somebodys_home() -> None:
    guilty = [_relative(path) for path in TEXTS if HOME.search(path.read_text(errors="ignore"))]
    assert not guilty


@pytest.mark.parametrize("page", PAGES, ids=_relative)
def test_links_and_figures_of_a_page_exist(page: Path) -> None:
    links = LINK.findall(page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_reference_checkpoint_is_small() -> None:
    size = sum(path.stat().st_size for path in (ROOT / "models").rglob("*") if path.is_file())
    assert size <= MAX_CHECKPOINT_BYTES
