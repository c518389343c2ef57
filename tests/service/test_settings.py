from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.host import Unguarded
from service.settings import ConfigError, Settings, is_loopback, shown, unknown_variables
from tests.service.conftest import OpenHost


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_is_served_without_keys(host: str) -> None:
    assert is_loopback(host)
    assert Settings(host=host).host == host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.com", ""])
def test_other_machines_are_served_with_keys_or_on_demand(host_of: OpenHost, host: str) -> None:
    with pytest.raises(Unguarded, match="reachable from other machines"):
        host_of(host=host)
    assert host_of(host=host, allow_unauthenticated=True).version == 0


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPT_PORT", "9000")
    assert Settings().port == 9000
    assert Settings(port=9001).port == 9001


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "npt.toml"
    path.write_text('port = 9100\nlog_level = "WARNING"\n')
    monkeypatch.setenv("NPT_CONFIG", str(path))
    return path


def test_file_wins_over_defaults_alone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (Settings().port, Settings().log_level, Settings().queue_size) == (9100, "WARNING", 256)
    monkeypatch.setenv("NPT_PORT", "9000")
    assert Settings().port == 9000
    assert Settings(port=9001).port == 9001


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("prot = 1", "prot is no setting: port?"),
        ("port = ", "Invalid value"),
        (None, "No such file"),
    ],
)
def test_file_that_cannot_be_used_is_refused(file: Path, content: str | None, reason: str) -> None:
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(ConfigError, match=reason):
        Settings()
    done = CliRunner().invoke(app, ["config", "show"])
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)


def test_value_of_a_file_is_checked(file: Path) -> None:
    file.write_text("port = 99999")
    done = CliRunner().invoke(app, ["config", "show"])
    assert (done.exit_code, done.stderr) == (1, "npt: port: Input should be less than or equal to 65535\n")


def test_settings_are_shown_with_their_source(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPT_DATABASE_URL", "postgresql://me:secret@db/npt")
    monkeypatch.setenv("NPT_QUEUE_SIZ", "3")
    done = CliRunner().invoke(app, ["config", "show"])
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in done.stdout.splitlines()}
    assert lines["port"] == f"9100 (file, {file})"
    assert lines["queue_size"] == "256 (default)"
    assert lines["database_url"] == "postgresql+psycopg://me:***@db/npt (environment, NPT_DATABASE_URL)"
    assert "npt: NPT_QUEUE_SIZ is no setting: NPT_QUEUE_SIZE?\n" in done.stderr
    assert set(lines) == set(Settings.model_fields)


def test_value_is_read_from_a_file_that_a_variable_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "url"
    secret.write_text("postgresql://me:word@db/npt\n")
    monkeypatch.setenv("NPT_DATABASE_URL_FILE", str(secret))
    settings = Settings()
    assert settings.database_url == "postgresql://me:word@db/npt"
    (line,) = (each for each in shown(settings) if each.name == "database_url")
    assert (line.source, "word" in str(line.value)) == (f"file, {secret}", False)
    assert unknown_variables() == []
    secret.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        Settings()
