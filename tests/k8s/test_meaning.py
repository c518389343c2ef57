"""What no schema knows: that the parts of the manifests fit each other, and the service."""

import re
from collections.abc import Iterator

import pytest
import typer
import yaml
from click import Command, Group

from service.cli import app
from service.settings import Settings
from tests.k8s.manifests import (
    NAMES,
    Object,
    built,
    containers,
    environment,
    named,
    of_kind,
    pod_templates,
    server,
)
from tests.programs import ROOT

WRITE_S = 30
"""What a write under way may take when its server ends."""
FOREIGN = re.compile(r"(AWS|OMP|TORCHINDUCTOR|TRITON|MODEL)_[A-Z0-9_]+")
"""Variables of others, and those that only arguments are made of."""
PROBES = {"/startupz", "/livez", "/readyz", "/metrics"}

ARGO = "argocd.argoproj.io"
ASKED = re.compile(r"""(?<!function )\b(?:call|callWith|fetch)\((?:"[A-Z]+", |\w+, )?["`]?([\w/:.-]+)""")
"""What a script asks for, up to where an id begins, or the name of it."""

every = pytest.mark.parametrize("name", NAMES)


def described_paths() -> set[str]:
    return set(yaml.safe_load((ROOT / "openapi.yaml").read_text())["paths"])


def seconds(text: str) -> int:
    found = re.fullmatch(r"(\d+)s", text)
    assert found, text
    return int(found[1])


def server_container(objects: tuple[Object, ...]) -> Object:
    (found,) = server(objects)["spec"]["template"]["spec"]["containers"]
    return dict(found)


def settings(objects: tuple[Object, ...]) -> Settings:
    """As the server would read them, but for what it reads from files and other services."""
    said = environment(objects, server_container(objects))
    values = {
        name.removeprefix("NPT_").lower(): value
        for name, value in said.items()
        if name.startswith("NPT_") and not name.endswith("_FILE")
    }
    return Settings(**values)


@every
def test_settings_are_settings(name: str) -> None:
    objects = built(name)
    settings(objects)
    for _, template in pod_templates(objects):
        for container in containers(template):
            for variable in environment(objects, container):
                if FOREIGN.fullmatch(variable):
                    continue
                assert variable.startswith("NPT_"), variable
                setting = variable.removeprefix("NPT_").removesuffix("_FILE").lower()
                assert setting in Settings.model_fields, variable


@every
def test_files_of_secrets_are_mounted_where_they_are_read(name: str) -> None:
    objects = built(name)
    for _, template in pod_templates(objects):
        volumes = {each["name"]: each for each in template["spec"]["volumes"]}
        for container in containers(template):
            mounts = {each["mountPath"]: volumes.get(each["name"], {}) for each in container["volumeMounts"]}
            files = [
                str(value)
                for variable, value in environment(objects, container).items()
                if variable.endswith("_FILE") and not _may_be_absent(container, variable)
            ]
            for file in [*files, *(each for each in container["args"] if each.startswith("/run/secrets/"))]:
                assert "secret" in mounts[file.rpartition("/")[0]], file


def _may_be_absent(container: Object, variable: str) -> bool:
    """Of what fetches a checkpoint, the address of the database is nobody's business."""
    return container["name"] == "fetch-model" and variable == "NPT_DATABASE_URL_FILE"


@every
def test_commands_can_be_read(name: str) -> None:
    for _, template in pod_templates(built(name)):
        for container in containers(template):
            _parse(typer.main.get_command(app), "npt", container["args"])


def _parse(command: Command, name: str, arguments: list[str]) -> None:
    """Raises click's UsageError where `npt` would."""
    context = command.make_context(name, list(arguments))
    if isinstance(command, Group):
        found, below, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert below is not None
        _parse(below, str(found), rest)


@every
def test_three_probes_ask_three_questions(name: str) -> None:
    container = server_container(built(name))
    asked = {
        kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")
    }
    assert asked == {"startup": "/startupz", "liveness": "/livez", "readiness": "/readyz"}
    assert set(asked.values()) <= described_paths()


@every
def test_replica_has_the_time_to_end_well(name: str) -> None:
    objects = built(name)
    told, container = settings(objects), server_container(objects)
    template = server(objects)["spec"]["template"]
    grace = template["spec"]["terminationGracePeriodSeconds"]
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert grace >= before + told.drain_delay_s + told.shutdown_grace_s + WRITE_S
    if name != "dev-cpu":
        assert told.shutdown_grace_s > told.request_timeout_s
        readiness = container["readinessProbe"]
        noticed = readiness["failureThreshold"] * readiness["periodSeconds"] + readiness["timeoutSeconds"]
        assert told.drain_delay_s > noticed


@every
def test_rollout_never_has_fewer_replicas(name: str) -> None:
    found = server(built(name))
    if found["kind"] == "StatefulSet":
        assert found["spec"]["replicas"] == 1
        assert "strategy" not in found["spec"]
    else:
        assert found["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


@every
def test_embedded_facts_have_a_volume_and_one_process(name: str) -> None:
    objects = built(name)
    spec, told = server(objects)["spec"], environment(objects, server_container(objects))
    if "NPT_DATABASE_URL_FILE" in told:
        assert "NPT_BLOB_STORE" in told
        assert "volumeClaimTemplates" not in spec
    else:
        assert spec["replicas"] == 1
        assert not of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject")
    if name.startswith("embedded"):
        (claim,) = spec["volumeClaimTemplates"]
        assert claim["metadata"]["name"] == "data"
        assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]


@every
def test_mounts_name_volumes(name: str) -> None:
    objects = built(name)
    claims = {each["metadata"]["name"] for each in of_kind(objects, "PersistentVolumeClaim")}
    for what, template in pod_templates(objects):
        names = [each["name"] for each in template["spec"]["volumes"]]
        templates = server(objects)["spec"].get("volumeClaimTemplates", [])
        if what.startswith("StatefulSet"):
            names += [each["metadata"]["name"] for each in templates]
        assert len(names) == len(set(names)), what
        for container in containers(template):
            assert {each["name"] for each in container["volumeMounts"]} <= set(names), what
        for volume in template["spec"]["volumes"]:
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims


@every
def test_secrets_are_those_that_the_docs_make(name: str) -> None:
    made = set(re.findall(r"create secret generic (\S+)", (ROOT / "docs" / "deployment.md").read_text()))
    objects = built(name)
    for _, template in pod_templates(objects):
        asked = {each["secret"]["secretName"] for each in template["spec"]["volumes"] if "secret" in each}
        assert asked <= made
    assert not of_kind(objects, "Secret")


@every
def test_selectors_find_the_server_and_nothing_else(name: str) -> None:
    objects = built(name)
    target = server(objects)
    labels = target["spec"]["template"]["metadata"]["labels"]
    assert target["spec"]["selector"]["matchLabels"].items() <= labels.items()
    others = [
        template["metadata"]["labels"]
        for what, template in pod_templates(objects)
        if what != f"{target['kind']} {target['metadata']['name']}"
    ]
    found = list(_selectors_of_the_server(objects))
    assert len(found) >= 5
    for what, selector in found:
        assert selector.items() <= labels.items(), what
        assert not any(selector.items() <= other.items() for other in others), what


def _selectors_of_the_server(objects: tuple[Object, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    for each in of_kind(objects, "Service"):
        yield each["metadata"]["name"], each["spec"]["selector"]
    for each in of_kind(objects, "PodDisruptionBudget", "PodMonitor"):
        yield each["kind"], each["spec"]["selector"]["matchLabels"]
    for each in of_kind(objects, "NetworkPolicy"):
        if each["spec"]["policyTypes"] == ["Ingress"]:
            yield each["metadata"]["name"], each["spec"]["podSelector"]["matchLabels"]
    for each in server(objects)["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
        yield "topology spread", each["labelSelector"]["matchLabels"]


@every
def test_ports_are_those_of_the_server(name: str) -> None:
    objects = built(name)
    ports = {each["name"]: each["containerPort"] for each in server_container(objects)["ports"]}
    assert ports == {"http": settings(objects).port}
    asked = [port["targetPort"] for each in of_kind(objects, "Service") for port in each["spec"]["ports"]]
    asked += [
        port["port"]
        for each in of_kind(objects, "NetworkPolicy")
        for rule in each["spec"].get("ingress", [])
        for port in rule["ports"]
    ]
    asked += [
        end["port"] for each in of_kind(objects, "PodMonitor") for end in each["spec"]["podMetricsEndpoints"]
    ]
    assert len(asked) >= 4
    assert set(asked) == {"http"}
    if server(objects)["kind"] == "StatefulSet":
        named(objects, "Service", server(objects)["spec"]["serviceName"])


@every
def test_nothing_comes_in_or_goes_out_that_no_policy_allows(name: str) -> None:
    (deny,) = (
        each
        for each in of_kind(built(name), "NetworkPolicy")
        if each["spec"]["podSelector"] == {}
        and "ingress" not in each["spec"]
        and "egress" not in each["spec"]
    )
    assert deny["spec"]["policyTypes"] == ["Ingress", "Egress"]


@every
def test_pods_reach_what_they_are_told_to_ask(name: str) -> None:
    objects = built(name)
    for what, template in pod_templates(objects):
        told: dict[str, str | None] = {}
        for container in containers(template):
            asked = environment(objects, container)
            told |= asked
            if any(_is_bucket(value) for value in asked.values()):
                assert {"AWS_REGION", "AWS_SHARED_CREDENTIALS_FILE"} <= asked.keys(), what
        ports = _ports_outside(objects, template["metadata"]["labels"])
        assert (443 in ports) == any(_is_bucket(value) for value in told.values()), what
        assert (5432 in ports) == ("NPT_DATABASE_URL_FILE" in told), what


def _is_bucket(value: str | None) -> bool:
    return value is not None and value.startswith("s3://")


def _ports_outside(objects: tuple[Object, ...], labels: dict[str, str]) -> set[int]:
    """To which a pod with these labels may connect outside the cluster."""
    return {
        port["port"]
        for each in of_kind(objects, "NetworkPolicy")
        if each["spec"]["podSelector"].get("matchLabels", {}).items() <= labels.items()
        for rule in each["spec"].get("egress", [])
        if any("ipBlock" in peer for peer in rule["to"])
        for port in rule["ports"]
    }


def test_hooks_of_argo_come_after_what_they_need() -> None:
    objects = built("prod")
    hooks = [each for each in of_kind(objects, "Job") if f"{ARGO}/hook" in each["metadata"]["annotations"]]
    assert hooks
    for hook in hooks:
        assert hook["metadata"]["annotations"][f"{ARGO}/hook"] == "Sync"  # one phase with what it needs
        spec = hook["spec"]["template"]["spec"]
        needed = [named(objects, "ServiceAccount", spec["serviceAccountName"])]
        needed += [
            named(objects, "ConfigMap", source["configMapRef"]["name"])
            for container in containers(hook["spec"]["template"])
            for source in container["envFrom"]
        ]
        needed += of_kind(objects, "Namespace")
        assert all(_wave(each) < _wave(hook) for each in needed)
        assert _wave(hook) < _wave(server(objects))


def _wave(found: Object) -> int:
    return int(found["metadata"].get("annotations", {}).get(f"{ARGO}/sync-wave", 0))


@pytest.mark.parametrize("name", ["prod", "embedded-with-gpu-and-model"])
def test_gateway_leads_to_whatever_the_console_asks(name: str) -> None:
    (route,) = of_kind(built(name), "HTTPRoute")
    prefixes = [match["path"]["value"] for rule in route["spec"]["rules"] for match in rule["matches"]]
    asked = set()
    for script in (ROOT / "service" / "console" / "static").iterdir():
        text = script.read_text()
        constants = dict(re.findall(r'^const (\w+) = "(\S+)";', text, re.MULTILINE))
        asked |= {constants.get(path, path) for path in ASKED.findall(text)}
        asked |= set(re.findall(r'(?:href|src)="(console/[^"]+)"', text))
    asked.remove("address")  # what `call` makes of its argument
    assert {"facts", "console/icon.svg", "console/main.js", "versions/"} <= asked
    assert [path for path in sorted(asked) if not any(_begins(f"/{path}", each) for each in prefixes)] == []


@pytest.mark.parametrize("name", ["prod", "embedded-with-gpu-and-model"])
def test_gateway_leads_to_the_api_and_not_to_probes(name: str) -> None:
    objects = built(name)
    (route,) = of_kind(objects, "HTTPRoute")
    prefixes = []
    for rule in route["spec"]["rules"]:
        (backend,) = rule["backendRefs"]
        (port,) = named(objects, "Service", backend["name"])["spec"]["ports"]
        assert backend["port"] == port["port"]
        assert seconds(rule["timeouts"]["request"]) > settings(objects).request_timeout_s
        prefixes += [match["path"]["value"] for match in rule["matches"]]
    prefixes.remove("/console")  # pages are not in openapi.yaml
    led = {path for path in described_paths() if any(_begins(path, prefix) for prefix in prefixes)}
    assert led == described_paths() - PROBES
    assert all(any(_begins(path, prefix) for path in led) for prefix in prefixes)


def _begins(path: str, prefix: str) -> bool:
    """As a gateway has it: by whole segments."""
    return path == prefix or path.startswith(f"{prefix}/")


@pytest.mark.parametrize("name", ["prod", "prod-with-keda"])
def test_autoscaler_has_the_number_of_replicas_to_itself(name: str) -> None:
    objects = built(name)
    assert "replicas" not in server(objects)["spec"]
    (scaler,) = of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject")
    assert scaler["spec"]["scaleTargetRef"]["name"] == server(objects)["metadata"]["name"]


def test_autoscalers_want_the_same() -> None:
    (hpa,) = of_kind(built("prod"), "HorizontalPodAutoscaler")
    (keda,) = of_kind(built("prod-with-keda"), "ScaledObject")
    by_pods = {
        each["pods"]["metric"]["name"]: each["pods"]["target"]["averageValue"]
        for each in hpa["spec"]["metrics"]
    }
    by_query = {
        re.findall(r"npt_\w+", each["metadata"]["query"])[0]: each["metadata"]["threshold"]
        for each in keda["spec"]["triggers"]
    }
    assert by_pods == by_query
    assert float(by_pods["npt_requests_running"]) < settings(built("prod")).max_concurrency
    behavior = keda["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior == hpa["spec"]["behavior"]


@every
def test_every_pod_is_locked_up(name: str) -> None:
    objects = built(name)
    (namespace,) = of_kind(objects, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    (account,) = of_kind(objects, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    for what, template in pod_templates(objects):
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False, what
        assert spec["serviceAccountName"] == account["metadata"]["name"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        for container in containers(template):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, what
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
            image, _, tag = container["image"].partition(":")
            assert image
            assert tag not in {"", "latest"}


@every
def test_objects_are_in_one_namespace(name: str) -> None:
    objects = built(name)
    (namespace,) = of_kind(objects, "Namespace")
    spaces = {each["metadata"]["namespace"] for each in objects if each["kind"] != "Namespace"}
    assert spaces == {namespace["metadata"]["name"]}


@every
def test_maps_that_are_read_are_there(name: str) -> None:
    objects = built(name)
    for _, template in pod_templates(objects):
        for container in containers(template):
            for source in container.get("envFrom", []):
                named(objects, "ConfigMap", source["configMapRef"]["name"])
            for variable in container.get("env", []):
                read = variable.get("valueFrom", {}).get("configMapKeyRef")
                if read:
                    assert read["key"] in named(objects, "ConfigMap", read["name"])["data"]
