"""The Dockerfile as far as it can be looked at without a build; `docker/rehearse.py` builds and runs it."""

import re
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


def test_its_variables_are_settings() -> None:
    told = set(re.findall(r"\bNPT_([A-Z_]+)=", TEXT))
    assert told
    assert {name.lower() for name in told} <= set(Settings.model_fields)


def test_it_runs_as_the_user_of_the_manifests() -> None:
    (user,) = set(re.findall(r"^USER ([1-9]\d*):", TEXT, re.MULTILINE))
    deployment = Path(ROOT / "k8s" / "base" / "deployment.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"runAsUser: (\d+)", deployment)) == {user}
