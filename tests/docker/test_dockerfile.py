"""The Dockerfile as far as it can be looked at without a build; `docker/rehearse.py` builds and runs it."""

import re
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

from service.settings import Settings
from tests.programs import ROOT, output_of, program_or_skip

DOCKERFILE = ROOT / "docker" / "Dockerfile"
TEXT = DOCKERFILE.read_text(encoding="utf-8")


def copied() -> set[str]:
    """What comes from the repository."""
    found = set()
    for line in re.findall(r"^COPY (?!--from)(.+)$", TEXT, re.MULTILINE):
        found.update(line.split()[:-1])
    return found


def test_hadolint_finds_nothing() -> None:
    assert output_of([program_or_skip("hadolint", "make tools"), DOCKERFILE]) == ""


def test_everything_that_is_copied_is_there_and_not_ignored() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert copied() == let_in
    assert all((ROOT / path).exists() for path in copied())


def test_packages_are_listed_when_all_are_there_and_what_goes_is_gone() -> None:
    order = [
        TEXT.index(step) for step in ("pip install --no-deps", "docker/slim.py /opt/npt", "cyclonedx-py")
    ]
    assert order == sorted(order)


def test_what_is_taken_out_is_not_told_of(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    for name in ("pip", "pip-26.0.dist-info", "npt", "npt-0.1.0.dist-info", "npt/tests", "torch/include"):
        (packages / name).mkdir(parents=True)
        if name.endswith(".dist-info"):
            (packages / name / "METADATA").write_text(f"Name: {name.partition('-')[0]}\n")
    output_of([sys.executable, ROOT / "docker" / "slim.py", tmp_path])
    assert [each.name for each in distributions(path=[str(packages)])] == ["npt"]
    assert {each.name for each in packages.iterdir()} == {"npt", "npt-0.1.0.dist-info", "torch"}
    assert not list((packages / "npt").iterdir())


def test_image_has_every_extra_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    optional = project["project"]["optional-dependencies"]
    served = [each for name, extra in optional.items() if name not in ("dev", "bench") for each in extra]
    lines = (ROOT / "docker" / "extras.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == [each.split(">=")[0] for each in served]


def test_its_variables_are_settings() -> None:
    told = set(re.findall(r"\bNPT_([A-Z_]+)=", TEXT))
    assert told
    assert {name.lower() for name in told} <= set(Settings.model_fields)


def test_it_runs_as_the_user_of_the_manifests() -> None:
    (user,) = set(re.findall(r"^USER ([1-9]\d*):", TEXT, re.MULTILINE))
    deployment = Path(ROOT / "k8s" / "base" / "deployment.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"runAsUser: (\d+)", deployment)) == {user}
