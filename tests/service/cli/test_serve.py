import asyncio
import socket

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
