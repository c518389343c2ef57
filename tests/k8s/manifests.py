"""Kustomizations as a cluster gets them."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.programs import ROOT, output_of, program_or_skip

K8S = ROOT / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
COMBINATIONS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "prod-with-gpu-and-model": ("prod", ("model", "gpu"), ()),
    "prod-with-keda": ("prod", ("keda",), ("hpa",)),
    "embedded-with-gpu-and-model": ("embedded", ("model", "gpu", "gateway"), ()),
}
"""An overlay, components that are put into it, and those that are taken out, as docs/deployment.md says."""
NAMES = [*OVERLAYS, *COMBINATIONS]

Object = dict[str, Any]


@cache
def built(name: str) -> tuple[Object, ...]:
    """The objects of an overlay, or of a combination."""
    if name in OVERLAYS:
        return _build(K8S / "overlays" / name)
    overlay, more, fewer = COMBINATIONS[name]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "k8s"
        shutil.copytree(K8S, copy)
        file = copy / "overlays" / overlay / "kustomization.yaml"
        content = yaml.safe_load(file.read_text())
        components = [each for each in content["components"] if each.rpartition("/")[2] not in fewer]
        content["components"] = [*components, *(f"../../components/{each}" for each in more)]
        file.write_text(yaml.safe_dump(content))
        return _build(file.parent)


def _build(folder: Path) -> tuple[Object, ...]:
    kubectl = program_or_skip("kubectl", "make tools")
    return tuple(yaml.safe_load_all(output_of([kubectl, "kustomize", folder])))


def of_kind(objects: Sequence[Object], *kinds: str) -> list[Object]:
    """Those of these kinds."""
    return [each for each in objects if each["kind"] in kinds]


def named(objects: Sequence[Object], kind: str, name: str) -> Object:
    """The one of this kind and name."""
    (found,) = (each for each in of_kind(objects, kind) if each["metadata"]["name"] == name)
    return found


def server(objects: Sequence[Object]) -> Object:
    """The Deployment or StatefulSet."""
    (found,) = of_kind(objects, "Deployment", "StatefulSet")
    return found


def pod_templates(objects: Sequence[Object]) -> Iterator[tuple[str, Object]]:
    """Every template of a pod, with what makes it."""
    for each in of_kind(objects, "Deployment", "StatefulSet", "Job"):
        yield f"{each['kind']} {each['metadata']['name']}", each["spec"]["template"]
    for each in of_kind(objects, "CronJob"):
        yield f"CronJob {each['metadata']['name']}", each["spec"]["jobTemplate"]["spec"]["template"]


def containers(template: Object) -> list[Object]:
    """Of a pod, those that prepare it first."""
    spec = template["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def environment(objects: Sequence[Object], container: Object) -> dict[str, str | None]:
    """The variables of a container; what is only known in a cluster is `None`."""
    values: dict[str, str | None] = {}
    for source in container.get("envFrom", []):
        values |= named(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
    for variable in container.get("env", []):
        values[variable["name"]] = variable.get("value")
    return values
