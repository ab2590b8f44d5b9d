"""Connections that end with the command, whatever they still had to send."""

import asyncio
import io

import aiohttp

from deploy.client.connections import Connector

REFUSED = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"


class Refusing(asyncio.Protocol):
    """Refuses a body once no buffer takes any more of it, and then reads the rest."""

    def __init__(self, ended: asyncio.Event) -> None:
        self._ended = ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.pause_reading()
        asyncio.get_running_loop().call_later(0.2, self._refuse)

    def _refuse(self) -> None:
        self._transport.write(REFUSED)
        asyncio.get_running_loop().call_later(0.2, self._transport.resume_reading)

    def connection_lost(self, error: Exception | None) -> None:
        self._ended.set()


async def test_connection_that_has_sent_its_rest_by_itself_is_no_trouble(
    unused_tcp_port: int,
) -> None:
    ended, connector = asyncio.Event(), Connector()
    loop = asyncio.get_running_loop()
    async with (
        await loop.create_server(lambda: Refusing(ended), "127.0.0.1", unused_tcp_port),
        aiohttp.ClientSession(connector=connector) as client,
    ):
        body = io.BytesIO(bytes(32 << 20))
        async with client.post(f"http://127.0.0.1:{unused_tcp_port}/", data=body) as reply:
            assert reply.status == 413
        assert not ended.is_set()  # there was a rest
        await ended.wait()
        connector.abort()
