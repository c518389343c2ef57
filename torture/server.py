"""`npt serve` around the double of the model."""

import os

from service.cli import app, serving
from tests.service.fakes import load_fake_runtime


def serve(data: str, port: int, environment: dict[str, str]) -> None:
    """Until a signal comes."""
    os.environ.update({"NPT_LOG_LEVEL": "ERROR", "NPT_MAX_PENDING_WRITES": "64", **environment})
    serving._load_runtime = lambda: load_fake_runtime
    app(["serve", "--data", data, "--port", str(port)], standalone_mode=False)
