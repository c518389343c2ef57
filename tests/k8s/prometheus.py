"""A Prometheus of our own, that scrapes one server."""

import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx2
import yaml

from tests.programs import program_or_skip

DATASOURCE = "${datasource}"
VARIABLES = {"$__rate_interval": "1m", "$namespace": ".*", "$instance": ".*"}
POLL_S = 0.02
PATIENCE_S = 60
"""For what takes one or two seconds; a machine may be busy."""


def prometheus_or_skip(folder: Path, server: str, rules: Path) -> "Prometheus":
    """One that runs; see `program_or_skip`."""
    return Prometheus(program_or_skip("prometheus", "apt-get install prometheus"), folder, server, rules)


class Prometheus:
    """Started by the constructor, which returns when it answers."""

    def __init__(self, program: str, folder: Path, server: str, rules: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        target = {"targets": [server.removeprefix("http://")], "labels": {"namespace": "npt"}}
        config = {
            "global": {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "500ms"},
            "rule_files": [str(rules)],
            "scrape_configs": [{"job_name": "npt", "static_configs": [target]}],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self._log = (folder / "log").open("w+")
        self._process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=self._log,
            stderr=self._log,
        )
        self._client = httpx2.Client(base_url=f"http://{address}", timeout=PATIENCE_S)
        self._until(self._ready, "an answer")

    def stop(self) -> None:
        """And forget its data."""
        self._process.kill()
        self._process.wait()
        self._client.close()
        self._log.close()

    def query(self, expression: str) -> list[Any]:
        """The vector of an expression, in which Grafana's variables are put in."""
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        answer = self._client.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", answer
        return list(answer["data"]["result"])

    def unanswered(self, expressions: list[str]) -> list[str]:
        """Those that have no result, even after several scrapes."""
        left = list(expressions)
        end = time.monotonic() + PATIENCE_S
        while left and time.monotonic() < end:
            left = [expression for expression in left if not self.query(expression)]
            time.sleep(POLL_S)
        return left

    def rules(self) -> list[Any]:
        """Every rule, with its health."""
        groups = self._client.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def wait_evaluated(self) -> None:
        """Until every rule has been evaluated."""
        self._until(lambda: all(rule["health"] != "unknown" for rule in self.rules()), "evaluated rules")

    def _ready(self) -> bool:
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx2.TransportError:
            return False

    def _until(self, holds: Any, what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not holds():
            if time.monotonic() > end or self._process.poll() is not None:
                self._log.seek(0)
                raise RuntimeError(f"no {what}: {self._log.read()}")
            time.sleep(POLL_S)
