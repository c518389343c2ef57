"""The commands against a real server process, and against a model loaded in place."""

import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from service.cli import app, copying, serving
from tests.service.fakes import load_fake_runtime
from tests.service.process import ServerProcess

FACT = "The CEO of TechCorp is Dr. Sarah Chen."
QUESTION = "Who is the CEO of TechCorp?"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    data = tmp_path_factory.mktemp("cli") / "data"
    process = ServerProcess(["-m", "tests.service.serve_fake", str(data)])
    yield process.wait_ready()
    process.kill()


@pytest.fixture
def npt(server: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("NPT_URL", server.url)
    return run


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def printed(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(result: Result) -> str:
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("npt: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_fact_is_taught_listed_shown_and_retracted(npt: Any) -> None:
    before = printed(npt("generate", QUESTION))
    assert before == " I don't know.\n"
    added = json.loads(printed(npt("facts", "add", FACT, "--question", "Who leads it?=Dr. Chen", "--json")))
    version = added["weights_version"]
    assert printed(npt("generate", QUESTION)) == " Dr. Sarah Chen.\n"
    assert printed(npt("generate", QUESTION, "--weights-version", str(version - 1))) == before
    assert f"{added['id']}  published [{version}, )  {FACT}" in printed(npt("facts", "list"))
    assert "recall_after 1" in printed(npt("facts", "get", added["id"]))
    retracted = printed(npt("facts", "retract", added["id"]))
    assert retracted == f"{added['id']}  retracted in version {version + 1}\n"
    assert printed(npt("generate", QUESTION)) == before
    back = printed(npt("versions", "activate", str(version)))
    assert f"{version + 2}  rollback" in back
    assert f"+{added['id']}" in printed(npt("versions", "list")).splitlines()[-1]
    npt("versions", "activate", "0")


def test_batch_is_read_from_a_file_and_searched(npt: Any, tmp_path: Path) -> None:
    file = tmp_path / "facts.txt"
    file.write_text(
        'The A of B is C.\n\n{"fact": "The D of E is F.", "metadata": {"n": 1}}\n', encoding="utf-8"
    )
    assert printed(npt("facts", "batch", str(file), "--dry-run")).count("dry run") == 2
    made = json.loads(printed(npt("facts", "batch", str(file), "--json")))
    assert len(made["facts"]) == 2
    found = printed(npt("facts", "search", "What is the A of B?"))
    assert found.startswith("fires  1.000 / 0.900  layer ")
    assert found.endswith(f"{made['facts'][0]['id']}  The A of B is C.\n")
    file.write_text("{broken", encoding="utf-8")
    assert "is not JSON" in refused(npt("facts", "batch", str(file)))
    assert "No such file" in refused(npt("facts", "batch", str(tmp_path / "missing")))


def test_contradiction_is_told(npt: Any) -> None:
    npt("versions", "activate", "0")
    first = json.loads(printed(npt("facts", "add", FACT, "--json")))["id"]
    other = "The CEO of TechCorp is Marcus Reed."
    assert "another answer" in refused(npt("facts", "add", other, "--on-conflict", "reject"))
    assert f"contradicts {first}" in printed(npt("facts", "add", other, "--dry-run"))
    assert f"supersedes {first}" in printed(npt("facts", "add", other))


def test_versions_are_compared_folded_and_exported(npt: Any, tmp_path: Path) -> None:
    npt("versions", "activate", "0")
    made = json.loads(printed(npt("facts", "add", FACT, "--json")))
    name, version = made["id"], made["weights_version"]
    assert printed(npt("versions", "diff", "0", str(version))).startswith(f"+{name}\n+1 columns")
    assert printed(npt("versions", "fold", name, "--dry-run")).startswith("dry run  facts 1")
    folded = printed(npt("versions", "fold", name))
    assert folded.startswith(f"version {version + 1}  facts 1")
    assert f"folded {name}" in folded
    assert f"folded {name}" in printed(npt("versions", "diff", str(version), str(version + 1)))
    file = tmp_path / "bank.safetensors"
    assert printed(npt("versions", "export", str(version), str(file))).endswith(" bytes\n")
    assert any(key.startswith(name) for key in load_file(file))
    assert "as columns" in refused(npt("versions", "export", str(version), str(file), "--format", "peft"))
    assert [path.name for path in tmp_path.iterdir()] == ["bank.safetensors"]
    missing = tmp_path / "nowhere" / "file"
    assert "No such file" in refused(npt("versions", "export", str(version), str(missing)))


def test_audit_says_who_did_what(npt: Any) -> None:
    name = json.loads(printed(npt("facts", "add", FACT, "--json")))["id"]
    printed(npt("facts", "retract", name))
    lines = [line.split("  ") for line in printed(npt("audit", "--limit", "1000")).splitlines()]
    assert [int(line[0]) for line in lines] == list(range(1, len(lines) + 1))
    (_, _, actor, action, target, detail) = lines[-1]
    assert (actor, action) == ("anonymous", "retract")
    assert target.startswith("versions/")
    assert json.loads(detail)["deaths"] == [name]


def test_operations_are_shown_and_end(npt: Any) -> None:
    npt("versions", "activate", "0")
    operation = json.loads(printed(npt("facts", "add", FACT, "--later", "--json")))["id"]
    while "succeeded" not in (line := printed(npt("operations", "get", operation))):
        assert line.split()[1] in ("pending", "running")
    assert f"{operation}  succeeded  facts.create" in printed(npt("operations", "list"))
    assert "has succeeded already" in refused(npt("operations", "cancel", operation))


def test_dry_run_says_what_would_be(npt: Any) -> None:
    assert printed(npt("facts", "add", FACT, "--dry-run")).startswith("dry run  version ")


def test_answers_can_be_had_as_json(npt: Any) -> None:
    answer = json.loads(printed(npt("generate", QUESTION, "--json", "--context", FACT)))
    assert answer["text"] == " Dr. Sarah Chen."


def test_pages_say_how_to_go_on(npt: Any) -> None:
    npt("versions", "activate", "0")
    npt("versions", "activate", "0")
    first = npt("versions", "list", "--limit", "1")
    assert printed(first).startswith("0  base")
    cursor = first.stderr.removeprefix("more: --cursor ").strip()
    assert printed(npt("versions", "list", "--limit", "1", "--cursor", cursor)).startswith("1  ")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("facts", "add", ""), "fact: String should have at least 1 character"),
        (("facts", "add", FACT, "--strategy", "magic"), "strategy: Input should be"),
        (("facts", "add", "An unreadable fact."), "the model cannot read this fact"),
        (("facts", "add", FACT, "--question", "no answer"), "is not QUESTION=ANSWER"),
        (("facts", "get", "fact_0"), "there is no fact fact_0"),
        (("versions", "activate", "999"), "there is no version 999"),
        (("facts", "add", FACT, "--if-match", "999"), "If-Match names version 999"),
        (("generate", QUESTION, "--temperature", "-1"), "temperature: Input should be"),
        (("generate", QUESTION, "--url", "http://127.0.0.1:9"), "cannot talk to"),
        (("generate", QUESTION, "--data", "x"), "--data goes with --model"),
    ],
)
def test_refusal_is_one_line(npt: Any, arguments: tuple[str, ...], reason: str) -> None:
    assert reason in refused(npt(*arguments))


def test_model_can_be_asked_without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_load_runtime", lambda: load_fake_runtime)
    answer = run("generate", QUESTION, "--model", "any", "--context", FACT)
    assert printed(answer) == " Dr. Sarah Chen.\n"


def test_load_of_a_server_is_printed_and_kept(npt: Any, server: ServerProcess, tmp_path: Path) -> None:
    flags = ["--streams", "1,2", "--seconds", "0.2", "--writes", "--out", str(tmp_path)]
    table = printed(npt("bench", "--url", server.url, *flags))
    assert table.strip() == (tmp_path / "bench.md").read_text().strip()
    assert "| server, a fact every second | 2 |" in table
    loads = json.loads((tmp_path / "bench.json").read_text())["loads"]
    assert [row["streams"] for row in loads["server"]] == [1, 2]
    assert (tmp_path / "bench.png").exists()
    npt("versions", "activate", "0")


def test_serving_strangers_is_refused_in_one_line() -> None:
    assert "reachable from other machines" in refused(run("serve", "--host", "0.0.0.0"))


def test_missing_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    missing = str(tmp_path / "nothing")
    data = ("--data", str(tmp_path / "data"))
    assert missing in refused(run("serve", "--model", missing, *data))


def test_data_folder_that_is_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"")
    assert "cannot make the folder" in refused(run("serve", "--data", str(tmp_path / "data")))


@pytest.fixture
def stranger() -> Iterator[str]:
    """Another service, which answers every request with JSON of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"hello": "world"}')

        def log_message(self, *_: Any) -> None:
            """Tests are quiet."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_answer_of_another_service_is_refused_in_one_line(stranger: str) -> None:
    assert "is not an NPT service" in refused(run("facts", "list", "--url", stranger))


def test_an_id_is_one_segment_of_the_address(npt: Any) -> None:
    assert "fact_id: String should match" in refused(npt("facts", "get", "a?b"))


def test_the_command_line_runs_as_a_module() -> None:
    """As `accelerate launch -m service.cli` starts it."""
    found = subprocess.run([sys.executable, "-m", "service.cli", "--help"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "serve" in found.stdout


def test_openapi_is_printed_or_written(tmp_path: Path) -> None:
    file = tmp_path / "openapi.yaml"
    text = printed(run("openapi"))
    assert text.startswith("openapi: 3.2")
    printed(run("openapi", "--output", str(file)))
    assert file.read_text(encoding="utf-8") == text


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    process = ServerProcess(
        ["-m", "tests.service.serve_fake", str(tmp_path_factory.mktemp("other") / "data")]
    )
    yield process.wait_ready()
    process.kill()


def test_facts_of_one_server_are_taught_to_another(
    npt: Any, server: ServerProcess, other: ServerProcess
) -> None:
    printed(npt("facts", "add", "The first sea is blue.", "--question", "Which sea is blue?=The first"))
    gone = json.loads(printed(npt("facts", "add", "The fourth sea is gone.", "--json")))["id"]
    printed(npt("facts", "retract", gone))
    printed(npt("facts", "add", "The third sea is green.", "--expires-at", "2090-01-01T00:00:00Z"))
    for _ in range(2):
        assert printed(run("facts", "copy", server.url, "--url", other.url)).endswith(" facts known\n")
    known = json.loads(printed(run("facts", "list", "--json", "--url", other.url)))["items"]
    before = json.loads(printed(npt("facts", "list", "--state", "published", "--json")))["items"]
    assert {"The first sea is blue.", "The third sea is green."} <= {fact["fact"] for fact in before}
    same = ("fact", "request", "expires_at")
    assert [[fact[n] for n in same] for fact in known] == [[fact[n] for n in same] for fact in before]


def test_fact_that_the_other_server_refuses_is_told(
    npt: Any, server: ServerProcess, other: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed(npt("facts", "add", "The fifth sea is calm."))
    calls = copying.Client.call

    async def refusing(self: Any, method: str, path: str, body: Any = None, *more: Any, **named: Any) -> Any:
        if method == "POST" and body["fact"] == "The fifth sea is calm.":
            body = {**body, "fact": "The fifth sea is unreadable."}
        return await calls(self, method, path, body, *more, **named)

    monkeypatch.setattr(copying.Client, "call", refusing)
    result = run("facts", "copy", server.url, "--url", other.url)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (1, "npt: 1 facts refused")
    assert "The fifth sea is calm." in result.stderr.splitlines()[0]
