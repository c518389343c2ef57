"""Headless Chromium, as Debian's package `chromium` brings it, for Playwright to drive."""

import os
import shutil
from pathlib import Path

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class ChromiumMissing(Exception):
    def __init__(self) -> None:
        super().__init__("Chromium is not installed: apt-get install chromium, or set CHROMIUM_BIN")


def chromium() -> Path:
    """The browser's program. Raises ChromiumMissing."""
    for candidate in (os.environ.get("CHROMIUM_BIN"), shutil.which("chromium")):
        if candidate and Path(candidate).exists():
            return Path(candidate)
    raise ChromiumMissing
