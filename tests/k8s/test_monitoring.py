"""Rules, autoscalers and the dashboard name what a server really tells, and a real Prometheus gets it."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from service import problems
from tests.k8s.manifests import K8S, OVERLAYS, built, of_kind
from tests.k8s.manifests import server as server_of
from tests.k8s.prometheus import DATASOURCE, Prometheus, prometheus_or_skip
from tests.programs import ROOT, output_of, program_or_skip
from tests.service.process import ServerProcess

DASHBOARD = json.loads((K8S / "components" / "dashboard" / "npt.json").read_text())
UNIT_TESTS = Path(__file__).parent / "alerts.yaml"
NAME = re.compile(r"\b(?:npt|process)_[a-z0-9_]+")
FACT = {"fact": "The CEO of TechCorp is Dr. Sarah Chen."}
SECRET = "a-secret-of-the-tests-that-is-long"


def rules() -> list[dict[str, Any]]:
    (found,) = of_kind(built("prod"), "PrometheusRule")
    return [rule for group in found["spec"]["groups"] for rule in group["rules"]]


def panels() -> list[tuple[str, str]]:
    return [
        (f"{panel['title']} {target['refId']}", target["expr"])
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", [])
    ]


@pytest.fixture(scope="module")
def rule_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (found,) = of_kind(built("prod"), "PrometheusRule")
    path = tmp_path_factory.mktemp("rules") / "rules.yaml"
    path.write_text(yaml.safe_dump(found["spec"]))
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a key, of which everything has been asked that it counts; its address."""
    data = tmp_path_factory.mktemp("server") / "data"
    secret = data.parent / "secret"
    secret.write_text(SECRET)
    options = ["--scope=admin", f"--secret-file={secret}", f"--data={data}"]
    output_of([sys.executable, "-m", "service.cli", "keys", "create", "tests", *options])
    process = ServerProcess(["-m", "tests.service.serve_fake", str(data)]).wait_ready()
    headers = {"Authorization": f"Bearer {SECRET}"}
    with httpx2.Client(base_url=process.url, headers=headers, timeout=60) as client:
        taught = client.post("/facts", json=FACT).raise_for_status().json()
        client.post("/facts", json={"fact": "nonsense"})
        for prompt in ("Who is the CEO of TechCorp?", "Who leads TechCorp? Who leads TechCorp? Who leads"):
            client.post("/generate", json={"prompt": prompt}).raise_for_status()
        client.delete(f"/facts/{taught['id']}").raise_for_status()
        assert httpx2.post(f"{process.url}/generate", json={"prompt": "x"}).status_code == 401
        assert client.get("/versions/999/export").status_code >= 400
    yield process.url
    process.kill()


@pytest.fixture(scope="module")
def told(server: str) -> set[str]:
    """Names of the series that a server tells."""
    families = text_string_to_metric_families(httpx2.get(f"{server}/metrics").text)
    return {sample.name for family in families for sample in family.samples}


@pytest.fixture(scope="module")
def prometheus(
    server: str, rule_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    running = prometheus_or_skip(tmp_path_factory.mktemp("prometheus"), server, rule_file)
    yield running
    running.stop()


def test_rules_can_be_read(rule_file: Path) -> None:
    promtool = program_or_skip("promtool", "apt-get install prometheus")
    assert f"{len(rules())} rules found" in output_of([promtool, "check", "rules", "--lint=all", rule_file])


def test_alerts_fire_where_they_must_and_only_there(rule_file: Path) -> None:
    promtool = program_or_skip("promtool", "apt-get install prometheus")
    shutil.copy(UNIT_TESTS, rule_file.parent)
    output_of([promtool, "test", "rules", rule_file.parent / UNIT_TESTS.name])


def test_every_alert_is_tested_both_ways_and_explained() -> None:
    tests = [
        case
        for test in yaml.safe_load(UNIT_TESTS.read_text())["tests"]
        for case in test.get("alert_rule_test", [])
    ]
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    sections = set(re.findall(r"^## (\w+)$", runbook, re.MULTILINE))
    alerts = [rule for rule in rules() if "alert" in rule]
    assert sections == {alert["alert"] for alert in alerts}
    for alert in alerts:
        name = alert["alert"]
        fired = [case["exp_alerts"] for case in tests if case["alertname"] == name]
        assert any(fired), f"{name} is never seen to fire"
        quiet_beside = len(fired) > 1 and not all(fired)
        assert quiet_beside or all(len(each) == 1 for each in fired), f"{name} is never seen to be silent"
        assert alert["annotations"]["runbook_url"].endswith(f"#{name.lower()}")
        assert alert["labels"]["severity"] in {"critical", "warning"}
        assert {"summary", "description"} <= alert["annotations"].keys()


def test_runbook_names_panels_as_the_dashboard_does() -> None:
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    named = set(re.findall(r"(?<!\*)\*([^*\n]+)\*(?!\*)", runbook))
    assert len(named) >= 20
    assert named <= {panel["title"] for panel in DASHBOARD["panels"]}


def test_runbook_commands_fit_every_overlay() -> None:
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    found = [server_of(built(name)) for name in OVERLAYS]
    servers = {f"{each['kind'].lower()}/{each['metadata']['name']}" for each in found}
    assert servers == {"deployment/npt", "statefulset/npt"}
    first, _, sections = runbook.partition("\n## ")
    assert all(each in first for each in servers)
    assert not [each for each in servers if each in sections]
    assert "$NPT" in sections


def test_every_metric_that_is_named_is_told(told: set[str]) -> None:
    (hpa,) = of_kind(built("prod"), "HorizontalPodAutoscaler")
    (keda,) = of_kind(built("prod-with-keda"), "ScaledObject")
    adapter = (K8S / "components" / "hpa" / "adapter-values.yaml").read_text()
    texts = [rule["expr"] for rule in rules()] + [expression for _, expression in panels()]
    texts += [each["pods"]["metric"]["name"] for each in hpa["spec"]["metrics"]]
    texts += [each["metadata"]["query"] for each in keda["spec"]["triggers"]]
    named = {name for text in texts for name in NAME.findall(text)}
    assert len(named) > 25
    assert named <= told
    (series,) = re.findall(r'__name__=~"([^"]+)"', adapter)
    asked = {each["pods"]["metric"]["name"] for each in hpa["spec"]["metrics"]}
    assert {name for name in told if re.fullmatch(series, name)} == asked


def test_every_metric_of_the_service_is_on_the_dashboard(told: set[str]) -> None:
    shown = {name for _, expression in panels() for name in NAME.findall(expression)}
    plain = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in told if name.startswith("npt_")}
    drawn = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert {name for name in plain if f"{name}_total" not in told} <= drawn


def test_reasons_and_results_that_are_named_exist() -> None:
    texts = "\n".join([rule["expr"] for rule in rules()] + [expression for _, expression in panels()])
    source = "\n".join(path.read_text() for path in (ROOT / "service").rglob("*.py"))
    problem_names = {
        kind.type.removeprefix("npt:").replace("-", "_")
        for kind in vars(problems).values()
        if isinstance(kind, problems.Kind)
    }
    named = re.findall(r'(?:reason|result)(?:=~|!~|=|!=)"([^"]+)"', texts)
    assert named
    for value in {each for alternatives in named for each in alternatives.split("|")}:
        assert value in problem_names or f'"{value}"' in source, value


def test_every_query_of_the_dashboard_has_an_answer(prometheus: Prometheus) -> None:
    expressions = [expression for _, expression in panels()]
    missing = prometheus.unanswered(expressions)
    assert not missing
    assert len(expressions) > 40


def test_variables_of_the_dashboard_list_replicas(prometheus: Prometheus) -> None:
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert {"datasource", "namespace", "instance"} == variables.keys()
    for name in ("namespace", "instance"):
        metric, label = re.fullmatch(
            r"label_values\((\w+), (\w+)\)", variables[name]["query"]["query"]
        ).groups()  # type: ignore[union-attr]
        listed = f"count by ({label}) ({metric})"
        assert not prometheus.unanswered([listed])
        assert prometheus.query(listed)[0]["metric"][label]
    for annotation in DASHBOARD["annotations"]["list"]:
        prometheus.query(annotation["expr"])


def test_rules_are_evaluated_on_a_live_server(prometheus: Prometheus) -> None:
    prometheus.wait_evaluated()
    loaded = prometheus.rules()
    assert {rule["name"] for rule in loaded} == {rule.get("alert") or rule["record"] for rule in rules()}
    assert {rule["health"] for rule in loaded} == {"ok"}
    assert not {rule["name"] for rule in loaded if rule.get("state") == "firing"}


def test_panels_ask_the_datasource_that_is_chosen() -> None:
    asked = {
        source["datasource"]["uid"]
        for panel in DASHBOARD["panels"]
        for source in [panel, *panel.get("targets", [])]
        if "datasource" in source
    }
    assert asked == {DATASOURCE}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
