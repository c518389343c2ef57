"""Settings and hosts, for the commands that load a model themselves."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from service.cli.allocator import return_large_blocks
from service.cli.failing import fail, told_in_one_line
from service.cli.launcher import processes
from service.settings import CONFIG, ConfigError, Settings

if TYPE_CHECKING:
    from service.host import Host, LoadRuntime


def read_settings(**flags: Any) -> Settings:
    """Settings from flags, environment and file."""
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        fail("; ".join(_line(entry) for entry in error.errors()))
    except ConfigError as error:
        fail(error)


def use_config(path: Path | None) -> None:
    """Read settings from this file, too."""
    if path is not None:
        os.environ[CONFIG] = str(path)


def load_host(settings: Settings, load_runtime: "LoadRuntime | None" = None) -> "Host":
    """An open host; whatever is wrong with checkpoint or data folder is told in one line."""
    if processes() > 1:
        fail(
            "a server computes in one process; of a model that is larger than a GPU, "
            "`torchrun -m service.cli generate --model` answers single prompts"
        )
    return_large_blocks()
    from npt_core.checkpoint import CheckpointError
    from npt_core.engine import UnsupportedModel
    from npt_core.placement import Unplaceable
    from service.blobs import BlobError
    from service.host import Unguarded, open_host
    from service.ledger import LedgerError
    from service.storage import StorageError

    with told_in_one_line(
        CheckpointError, Unplaceable, UnsupportedModel, LedgerError, BlobError, StorageError, Unguarded
    ):
        return open_host(settings, load_runtime or _load_runtime())


def _load_runtime() -> "LoadRuntime":
    from transformers.utils.logging import disable_progress_bar

    from npt_core.loading import load_runtime

    disable_progress_bar()  # Logs are read by programs, and a refusal is one line.
    return load_runtime


def _line(entry: Any) -> str:
    name = ".".join(map(str, entry["loc"]))
    reason = str(entry["msg"]).removeprefix("Value error, ")
    return f"{name}: {reason}" if name else reason
