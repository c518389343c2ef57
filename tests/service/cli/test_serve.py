import asyncio
import gc
import socket
from pathlib import Path

from typer.testing import CliRunner

from service.cli import app
from service.cli.serve import _bound


async def test_answers_do_not_wait_until_the_client_acknowledges_their_beginning() -> None:
    told = list[int]()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listener = _bound("127.0.0.1", 0)
    async with await asyncio.start_server(accept, sock=listener):
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        assert await reader.read() == b""
        writer.close()
    assert told == [1]


def test_garbage_is_collected_again_where_a_start_fails(tmp_path: Path) -> None:
    taken = _bound("127.0.0.1", 0)
    taken.listen()
    port = taken.getsockname()[1]
    done = CliRunner().invoke(app, ("serve", "--data", str(tmp_path), "--port", str(port)))
    assert "cannot listen" in done.stderr
    assert gc.isenabled()
    taken.close()
