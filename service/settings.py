"""Everything the service can be told: flags of `npt serve`, `NPT_*` variables, a TOML file."""

import base64
import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from service.ledger.database import parsed

PREFIX = "NPT_"
CONFIG = "NPT_CONFIG"
"""The variable that names a file of settings."""
FILE = "_FILE"
"""At the end of a variable: its value is the path of a file that holds the setting's."""
NOT_SETTINGS = frozenset({CONFIG, "NPT_URL", "NPT_API_KEY", "NPT_SOURCE_API_KEY"})
"""Variables of this prefix that are read elsewhere."""


class ConfigError(Exception):
    """The file of settings cannot be used."""


class Settings(BaseSettings):
    """Frozen once read. Flags win over the environment, the environment over the file that `NPT_CONFIG`
    names, the file over the defaults. `NPT_<NAME>_FILE` names a file that holds one value, such as a
    secret that an orchestrator mounts.

    Raises:
        pydantic.ValidationError: a value out of range.
        ConfigError: the file cannot be read, or holds a name that is none.
    """

    model_config = SettingsConfigDict(env_prefix="NPT_", frozen=True, extra="ignore")

    model: str = "models/reference"
    """A folder or a hub id."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model computes; `auto` is a GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Numbers of its weights; `auto` is bfloat16 on a GPU, where float32 is refused, float32 on a CPU."""
    data: Path = Path("data")
    """The folder of ledger and blobs; one process owns it."""
    database_url: str | None = None
    """Where the ledger is: absent, a SQLite file in `data`; `postgresql://user@host/name` for one that
    several replicas share."""
    blob_store: str | None = None
    """Where weights are kept: absent, a folder in `data`; `s3://bucket/prefix` for several replicas."""
    blob_keys: SecretStr | None = None
    """Encrypts blobs: Fernet keys, 32 bytes in URL-safe Base64, with commas between. The first encrypts, all
    decrypt."""
    version_lag: int = Field(100, ge=0)
    """Versions that a replica may be behind the ledger and still be ready."""

    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    allow_unauthenticated: bool = False
    """Serve other machines although anyone may then read and write facts."""

    max_concurrency: int = Field(64, ge=1)
    """Sequences decoded at once, in one batch."""
    queue_size: int = Field(256, ge=0)
    """Sequences that may wait: more would wait longer than a client does."""
    batch_tokens: int | None = Field(None, ge=1)
    """Tokens of one step; more read long prompts sooner and delay everybody's next token. Absent: 128 on a
    CPU, 2,048 on a GPU."""
    kv_pages: int | None = Field(None, ge=1)
    """Pages for keys and values. Absent: 1,024 of 16 tokens on a CPU, 15 KiB a token for the reference
    model; on a GPU as many of 256 tokens as fit its memory."""
    writers_share: float = Field(0.2, gt=0, lt=1)
    """Part of the time that writing facts may take while answers are computed: more makes facts
    land sooner, and tokens come later."""
    max_pending_writes: int = Field(16, ge=1)
    """Writes that may be under way or wait for the write lock."""

    max_pending_operations: int = Field(256, ge=1)
    """Writes that may wait although their clients do not (`Prefer: respond-async`)."""

    keep_versions: int = Field(1000, ge=0)
    """Versions behind the newest that can still be asked for; 0 keeps the newest alone. Older ones
    are answered with 410, their facts cost no memory, and rollback to them goes on working."""

    max_body_bytes: int = Field(1024 * 1024, ge=1024)
    """Ample for the longest prompt, small enough that reading it costs nothing."""
    read_timeout_s: float = Field(30.0, gt=0)
    """A request's head, and then its body, must be here within this long: slow clients cost connections."""
    request_timeout_s: float = Field(120.0, gt=0)
    """An answer is cut off (finish reason `deadline`) after this long."""
    version_wait_s: float = Field(5.0, ge=0)
    """How long `min_weights_version`, or a version that another replica made, is waited for before 503."""
    drain_delay_s: float = Field(0.0, ge=0)
    """How long new requests are still answered after SIGTERM, while `/readyz` already says 503."""
    shutdown_grace_s: int = Field(30, ge=0)
    """How long running answers may go on after SIGTERM."""

    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, environment, files that `NPT_<NAME>_FILE` variables name, the file of settings."""
        return (
            init_settings,
            env_settings,
            InitSettingsSource(settings_cls, _from_files_of_variables()),
            InitSettingsSource(settings_cls, from_file()),
        )

    @property
    def model_name(self) -> str:
        """What clients call the model: the name of its folder, or its hub id."""
        return Path(self.model).resolve().name if Path(self.model).is_dir() else self.model

    @field_validator("database_url")
    @classmethod
    def _is_known_database(cls, url: str | None) -> str | None:
        if url is not None:
            parsed(url)
        return url

    @field_validator("blob_keys")
    @classmethod
    def _are_keys(cls, keys: SecretStr | None) -> SecretStr | None:
        if keys is not None and not all(map(_is_key, keys.get_secret_value().split(","))):
            raise ValueError("must be keys of 32 bytes in URL-safe Base64 with commas between")
        return keys

    @field_validator("blob_store")
    @classmethod
    def _is_known_store(cls, url: str | None) -> str | None:
        if url is not None and not re.fullmatch(r"s3://[^/]+(/.*)?", url):
            raise ValueError("must be s3://bucket or s3://bucket/prefix")
        return url


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text, altchars=b"-_", validate=True)) == 32
    except ValueError:
        return False


class Shown(NamedTuple):
    """A setting as it is, and who says so."""

    name: str
    value: Any
    source: str


def shown(settings: Settings) -> Iterator[Shown]:
    """Every setting with its source; the password of a URL is left out."""
    in_file = from_file()
    for name in Settings.model_fields:
        value = getattr(settings, name)
        variable = PREFIX + name.upper()
        if variable in os.environ:
            source = f"environment, {variable}"
        elif variable + FILE in os.environ:
            source = f"file, {os.environ[variable + FILE]}"
        else:
            source = f"file, {os.environ[CONFIG]}" if name in in_file else "default"
        if name == "database_url" and value:
            value = parsed(value).render_as_string()  # without its password
        yield Shown(name, value, source)


def unknown_variables() -> list[str]:
    """Variables of our prefix that are no setting, each with the one that was probably meant."""
    own = {PREFIX + name.upper() for name in Settings.model_fields}
    known = own | {name + FILE for name in own} | NOT_SETTINGS
    wrong = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
    return [_guessed(name, known) for name in wrong]


def from_file() -> dict[str, Any]:
    """What the file says that `NPT_CONFIG` names, if it names one. Raises `ConfigError`."""
    path = os.environ.get(CONFIG)
    if not path:
        return {}
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    unknown = sorted(set(content) - set(Settings.model_fields))
    if unknown:
        raise ConfigError(f"{path}: {_guessed(unknown[0], set(Settings.model_fields))}")
    return content


def _from_files_of_variables() -> dict[str, Any]:
    paths = {name: os.environ.get(PREFIX + name.upper() + FILE) for name in Settings.model_fields}
    return {name: _content(path) for name, path in paths.items() if path}


def _content(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _guessed(name: str, known: set[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"{name} is no setting" + (f": {near[0]}?" if near else "")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`; names other than localhost are not resolved."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
