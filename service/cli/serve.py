"""`npt serve`."""

import asyncio
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import uvicorn

    from service.host import Host


def command(
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id of any Llama-family checkpoint.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to bind.  [127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind.  [8080]")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of ledger and blobs.  [data]")] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file of settings.  [NPT_CONFIG]")] = None,
) -> None:
    """Serve a model over HTTP. Whatever has no flag is read from NPT_* variables, then from a file."""
    with _collecting_later():
        _run(model, host, port, data, config)


@contextmanager
def _collecting_later() -> Iterator[None]:
    """Within the block Python collects garbage only after `_all_is_made`: almost all that a start makes, half
    a million objects, lives as long as the process, and to look through it again and again takes a fifth of
    the start.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _run(
    model: str | None, host: str | None, port: int | None, data: Path | None, config: Path | None
) -> None:
    import structlog

    from service.cli.failing import told_in_one_line
    from service.cli.serving import load_host, read_settings, use_config
    from service.logs import configure_logging
    from service.settings import unknown_variables
    from service.tracing import TracingUnavailable, start_tracing

    use_config(config)
    settings = read_settings(model=model, host=host, port=port, data=data)
    configure_logging(settings.log_level)
    for line in unknown_variables():
        structlog.get_logger("npt").warning(line)
    with told_in_one_line(TracingUnavailable):
        send_last_spans = start_tracing()
    # Before the model is loaded: a port that is taken is told at once. Nobody can connect yet.
    listener = _bound(settings.host, settings.port)
    started = time.perf_counter()
    opened = load_host(settings)
    try:
        serve(opened, listener, time.perf_counter() - started)
    finally:
        send_last_spans()


def _bound(host: str, port: int) -> socket.socket:
    from service.cli.failing import fail

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Named, not 0: asyncio turns Nagle's delay off only where it sees TCP. With it, each answer on a
        # connection that is kept would wait 40 ms for the client's acknowledgement of its head.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        fail(f"cannot listen on {host}, port {port}: {error.strerror}")
    return listener


def serve(host: "Host", listener: socket.socket, load_seconds: float = 0.0) -> None:
    """Serve an open host until a signal comes; running answers get their time to end."""
    import structlog
    import uvicorn

    from service.app import create_app
    from service.http_protocol import with_head_timeout

    settings = host.settings
    structlog.get_logger("npt").info(
        "loaded",
        model=settings.model,
        data=str(settings.data),
        weights_version=host.version,
        seconds=round(load_seconds, 2),
    )
    config = uvicorn.Config(
        create_app(host),
        host=settings.host,
        log_config=None,
        http=with_head_timeout(settings.read_timeout_s),
        timeout_graceful_shutdown=settings.shutdown_grace_s,
        server_header=False,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal again once everything has ended, which is as it should be.
        signal.signal(number, _end_well)
    try:
        draining_server(host, config).run([listener])
    finally:
        if host.left_behind.is_set():
            os._exit(0)  # its thread would be waited for


def draining_server(host: "Host", config: "uvicorn.Config") -> "uvicorn.Server":
    """A server that at the first signal is not ready any more, goes on for `drain_delay_s`, so that whoever
    sends it traffic can notice, and then ends; the second signal ends it at once.
    """
    import structlog
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            _all_is_made()
            for each in sockets or ():
                url = _url(host.settings.host, each.getsockname()[1])
                structlog.get_logger("npt").info(f"Uvicorn running on {url} (Press CTRL+C to quit)")

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if host.draining.is_set():
                os._exit(128 + sig)
            host.draining.set()
            delay = host.settings.drain_delay_s
            if delay:
                asyncio.get_running_loop().call_later(delay, super().handle_exit, sig, frame)
            else:
                super().handle_exit(sig, frame)

    return Server(config)


def _all_is_made() -> None:
    """From now on Python collects garbage, and never again looks at what is there now, which would take half
    a second in the middle of answers.
    """
    gc.freeze()
    gc.enable()


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _end_well(_number: int, _frame: FrameType | None) -> None:
    sys.exit(0)
