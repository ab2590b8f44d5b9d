"""Connections that end with the command, whatever they still had to send."""

import asyncio
import gc
import io

import aiohttp

from deploy.client.connections import Connector
from deploy.client.running import Exit
from tests.deploy.client.running import run_beside

BODY_BYTES = 32 << 20  # more than any kernel takes
REFUSED = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"


class Refusing(asyncio.Protocol):
    """Refuses a body once no buffer takes any more of it, and reads none of the rest."""

    def __init__(self) -> None:
        self.connections: list[asyncio.Transport] = []
        self.ended = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.connections.append(transport)
        transport.pause_reading()
        asyncio.get_running_loop().call_later(0.5, transport.write, REFUSED)

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set()


async def test_rest_of_a_refused_body_is_dropped_with_its_connection(unused_tcp_port: int) -> None:
    """The server never reads it: what asyncio still held was a transport left open for ever."""
    server, loop = Refusing(), asyncio.get_running_loop()
    async with await loop.create_server(lambda: server, "127.0.0.1", unused_tcp_port):
        url = f"http://127.0.0.1:{unused_tcp_port}/v1/stream/s"
        body = bytes(BODY_BYTES)
        done = await run_beside("append", url, "-", "--content-type", "text/plain", stdin=body)
        gc.collect()  # which warns of a transport that nobody closed, and so fails the test
        server.connections[0].abort()
    assert (done.code, len(server.connections)) == (Exit.REFUSED, 1)


async def test_connection_that_has_sent_its_rest_by_itself_is_no_trouble(
    unused_tcp_port: int,
) -> None:
    server, connector = Refusing(), Connector()
    loop = asyncio.get_running_loop()
    async with (
        await loop.create_server(lambda: server, "127.0.0.1", unused_tcp_port),
        aiohttp.ClientSession(connector=connector) as client,
    ):
        body = io.BytesIO(bytes(BODY_BYTES))
        async with client.post(f"http://127.0.0.1:{unused_tcp_port}/", data=body) as reply:
            assert reply.status == 413
        assert not server.ended.is_set()  # there was a rest
        server.connections[0].resume_reading()
        await server.ended.wait()
        connector.abort()
