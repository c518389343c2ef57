"""compose.yaml: what can be known without Docker, and its services as processes of this machine."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from service.settings import NOT_SETTINGS, Settings
from tests.programs import ROOT, output_of, program_or_skip
from tests.service.postgres import PostgresServer, postgres_or_skip
from tests.service.process import ServerProcess
from tests.service.s3 import bucket_client, moto_server

COMPOSE = ROOT / "compose.yaml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
SECRETS: dict[str, dict[str, str]] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["secrets"]
OURS = [name for name, service in SERVICES.items() if service["image"] == "npt:compose"]
FACT = {"fact": "The CEO of TechCorp is Dr. Sarah Chen."}


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """As the script makes them."""
    script = tmp_path / "secrets.sh"
    shutil.copy(ROOT / "docker" / "compose" / "secrets.sh", script)
    output_of(["sh", script])
    return tmp_path / "secrets"


def mounted(service: Mapping[str, Any]) -> list[Path]:
    """Files of the repository."""
    volumes = [volume.split(":")[0] for volume in service.get("volumes", [])]
    return [ROOT / volume for volume in volumes if volume.startswith("./")]


def test_compose_reads_it(tmp_path: Path, secrets: Path) -> None:
    program = program_or_skip("docker-compose", "apt-get install docker-compose")
    for name in ("compose.yaml", "docker/Dockerfile"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(secrets, tmp_path / "docker" / "compose" / "secrets")
    read = yaml.safe_load(output_of([program, "--file", tmp_path / "compose.yaml", "config"]))
    assert set(read["services"]) == set(SERVICES)


def test_its_variables_are_settings() -> None:
    known = {f"NPT_{name.upper()}" for name in Settings.model_fields}
    known |= {f"{name}_FILE" for name in known} | NOT_SETTINGS
    told = {name for each in OURS for name in SERVICES[each]["environment"] if name.startswith("NPT_")}
    assert told
    assert told <= known


def test_secrets_are_files_that_the_script_makes(secrets: Path) -> None:
    assert {Path(each["file"]).name for each in SECRETS.values()} <= {path.name for path in secrets.iterdir()}
    for service in SERVICES.values():
        named = re.findall(r"/run/secrets/(\w+)", yaml.safe_dump(service))
        assert set(named) <= set(service.get("secrets", []))
        for name in service.get("environment", {}):
            assert not re.search(r"(PASSWORD|SECRET|TOKEN)$", name)
    assert secrets.stat().st_mode & 0o077 == 0
    before = {path.name: path.read_text() for path in secrets.iterdir()}
    output_of(["sh", secrets.parent / "secrets.sh"])
    assert {path.name: path.read_text() for path in secrets.iterdir()} == before
    assert "/docker/compose/secrets/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_what_is_mounted_is_there_and_images_are_pinned() -> None:
    for service in SERVICES.values():
        assert all(path.is_file() for path in mounted(service))
        assert service["image"] == "npt:compose" or re.search(r":v?\d+\.\d+(\.\d+)?$", service["image"])


def test_every_service_is_locked_down() -> None:
    for name, service in SERVICES.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_nothing_is_killed_before_its_time_is_over() -> None:
    for name in ("npt-1", "npt-2"):
        told = SERVICES[name]["environment"]
        longest = float(told["NPT_DRAIN_DELAY_S"]) + float(told["NPT_SHUTDOWN_GRACE_S"])
        assert float(SERVICES[name]["stop_grace_period"].removesuffix("s")) > longest


def test_replicas_are_those_that_are_balanced_and_scraped() -> None:
    replicas = {f"{name}:8080" for name in SERVICES if re.fullmatch(r"npt-\d", name)}
    folder = ROOT / "docker" / "compose"
    (scraped,) = yaml.safe_load((folder / "prometheus.yaml").read_text())["scrape_configs"]
    balanced = (folder / "Caddyfile").read_text(encoding="utf-8")
    assert set(scraped["static_configs"][0]["targets"]) == replicas
    assert set(re.findall(r"npt-\d:\d+", balanced)) == replicas
    (probe,) = re.findall(r"health_uri (\S+)", balanced)
    assert probe in yaml.safe_load((ROOT / "openapi.yaml").read_text(encoding="utf-8"))["paths"]


def test_prometheus_takes_the_rules_that_the_service_extracts(tmp_path: Path) -> None:
    promtool = program_or_skip("promtool", "apt-get install prometheus")
    (code,) = SERVICES["rules"]["command"]
    (rule,) = mounted(SERVICES["rules"])
    (tmp_path / "rules").mkdir()
    code = code.replace('"/prometheus-rule.yaml"', f'"{rule}"').replace('"/rules/', f'"{tmp_path}/rules/')
    output_of([sys.executable, "-c", code])
    config = (ROOT / "docker" / "compose" / "prometheus.yaml").read_text(encoding="utf-8")
    (tmp_path / "prometheus.yaml").write_text(config.replace("/etc/prometheus", str(tmp_path)))
    said = output_of([promtool, "check", "config", tmp_path / "prometheus.yaml"])
    assert re.search(r"[1-9]\d* rules found", said)


@pytest.fixture
def database() -> Iterator[PostgresServer]:
    server = postgres_or_skip()
    yield server
    server.remove()


def environment(service: str, folder: Path, secrets: Path, store: str) -> dict[str, str]:
    """Of a service, with the addresses and paths of this machine."""
    told = SERVICES[service]["environment"]
    own = {name: value.replace("/run/secrets", str(secrets)) for name, value in told.items()}
    return own | {"AWS_ENDPOINT_URL": store, "NPT_DATA": str(folder / service), "NPT_PORT": "0"}


def test_fact_taught_to_one_replica_is_known_by_the_other(
    database: PostgresServer, secrets: Path, tmp_path: Path
) -> None:
    """The services in their order, of the environment and the commands that compose.yaml gives them."""
    (secrets / "database_url").write_text(database.new_database())
    key = (secrets / "api_key").read_text()
    servers: list[ServerProcess] = []
    with moto_server() as store:
        bucket = SERVICES["npt-1"]["environment"]["NPT_BLOB_STORE"].split("/")[2]
        assert bucket in SERVICES["bucket"]["entrypoint"][2]
        bucket_client(store).create_bucket(Bucket=bucket)
        for once in ("migrate", "key", "key"):
            command = [each.replace("/run/secrets", str(secrets)) for each in SERVICES[once]["command"]]
            subprocess.run(
                [sys.executable, "-m", "service.cli", *command],
                env=os.environ | environment(once, tmp_path, secrets, store),
                cwd=ROOT,
                check=True,
                capture_output=True,
            )
        try:
            for name in ("npt-1", "npt-2"):
                told = environment(name, tmp_path, secrets, store)
                servers.append(ServerProcess(["-m", "service.cli", "serve"], told))
            first, second = (
                httpx2.Client(
                    base_url=server.wait_ready().url, headers={"Authorization": f"Bearer {key}"}, timeout=120
                )
                for server in servers
            )
            made = first.post("/facts", json=FACT)
            assert made.status_code == 201, made.text
            asked = {"prompt": "Who leads TechCorp?", "weights_version": made.json()["weights_version"]}
            assert second.post("/generate", json=asked).json()["text"] == " Dr. Sarah Chen."
            assert httpx2.get(f"{servers[0].url}/facts").status_code == 401
            contents = bucket_client(store).list_objects_v2(Bucket=bucket)["Contents"]
            (blob,) = (bucket_client(store).get_object(Bucket=bucket, Key=each["Key"]) for each in contents)
            assert blob["Body"].read().startswith(b"npt-sealed")
            assert [server.stop() for server in servers] == [0, 0]
        finally:
            for server in servers:
                server.kill()
