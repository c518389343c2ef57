"""What a cluster would say of the manifests: strict schemas, of the oldest and the newest version."""

import json
from pathlib import Path

import kubernetes_validate
import pytest
from jsonschema import Draft202012Validator

from tests.k8s.manifests import NAMES, Object, built
from tests.programs import ROOT, output_of, program_or_skip

OLDEST, NEWEST = "1.30", "1.37"
"""1.30 is the first that knows `preStop.sleep` unasked."""
CUSTOM = Path(__file__).parent / "schemas"
"""Of kinds that Kubernetes lacks: the fields that we use, as their definitions have them, and no other."""


def test_versions_are_those_of_the_docs() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text()
    assert f"Kubernetes {OLDEST} to {NEWEST}" in page
    assert kubernetes_validate.latest_version().startswith(f"{NEWEST}.")


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", NAMES)
def test_manifests_fit_the_schemas(name: str, version: str) -> None:
    objects = built(name)
    assert len(objects) > 9
    for each in objects:
        custom = _custom_schema(each)
        if custom is None:
            kubernetes_validate.validate(each, version, strict=True)
        else:
            Draft202012Validator(json.loads(custom.read_text())).validate(each)


def _custom_schema(found: Object) -> Path | None:
    group = found["apiVersion"].partition("/")[0]
    if "." not in group or (group.endswith(".k8s.io") and not group.startswith("gateway.")):
        return None
    return CUSTOM / f"{found['kind'].lower()}.json"


@pytest.mark.parametrize("change", ["unknown field", "wrong type", "missing field"])
def test_schemas_find_mistakes(change: str) -> None:
    (route,) = (each for each in built("prod") if each["kind"] == "HTTPRoute")
    broken = json.loads(json.dumps(route))
    if change == "unknown field":
        broken["spec"]["rules"][0]["timeout"] = {}
    elif change == "wrong type":
        broken["spec"]["rules"][0]["backendRefs"][0]["port"] = "80"
    else:
        del broken["spec"]["rules"][0]["backendRefs"][0]["name"]
    schema = _custom_schema(broken)
    assert schema is not None
    assert not Draft202012Validator(json.loads(schema.read_text())).is_valid(broken)


def test_checkov_finds_nothing_that_is_not_explained(tmp_path: Path) -> None:
    checkov = program_or_skip("checkov", "make tools")
    for name in NAMES:
        (tmp_path / f"{name}.json").write_text(
            json.dumps({"apiVersion": "v1", "kind": "List", "items": built(name)})
        )
    report = output_of(
        [checkov, "-d", tmp_path, "--config-file", ROOT / "k8s" / "checkov.yaml", "--compact", "-o", "json"]
    )
    summary = json.loads(report)["summary"]
    assert summary["failed"] == summary["parsing_errors"] == 0
    assert summary["passed"] > 300
