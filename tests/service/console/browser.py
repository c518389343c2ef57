"""A real browser, and the application on a real port."""

import socket
import threading
from pathlib import Path

import uvicorn

from service.app import create_app
from service.host import Host
from tests.programs import skip_or_fail
from tools.chromium import ChromiumMissing, chromium


def chromium_or_skip() -> Path:
    """Without Chromium see `skip_or_fail`."""
    try:
        return chromium()
    except ChromiumMissing as error:
        skip_or_fail(str(error))


class LiveServer:
    """The application of a host on a port of its own, which it keeps when it is stopped and started again."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        """Of the console."""
        return f"http://127.0.0.1:{self._port}/console"

    def start(self) -> None:
        """Returns when the port is open."""
        listening = socket.create_server(("127.0.0.1", self._port))
        self._port = listening.getsockname()[1]
        config = uvicorn.Config(
            create_app(self._host), lifespan="off", log_config=None, timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listening]}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Every connection is closed, and new ones are refused."""
        self._server.should_exit = True
        self._thread.join()
