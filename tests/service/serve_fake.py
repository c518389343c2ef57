"""`npt serve` around the fake runtime, as a process: `python -m tests.service.serve_fake DATA`."""

import sys

from service.cli import app, serving
from tests.service.fakes import load_fake_runtime

if __name__ == "__main__":
    serving._load_runtime = lambda: load_fake_runtime
    app(["serve", "--data", sys.argv[1], "--port", "0"])
