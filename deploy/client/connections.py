"""Connector: connections that end with the command, whatever they still had to send."""

import asyncio
import weakref
from typing import TYPE_CHECKING

import aiohttp

if TYPE_CHECKING:
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace


class Connector(aiohttp.TCPConnector):
    """aiohttp's connector, which can drop what it opened.

    A server that refuses a large body reads no more of it. aiohttp then closes the connection, and
    asyncio keeps it open until the rest is sent: for ever, or until the loop ends without it.
    """

    def __init__(self, *, force_close: bool = False, limit: int = 100) -> None:
        super().__init__(force_close=force_close, limit=limit)
        self._opened: weakref.WeakSet[asyncio.Transport] = weakref.WeakSet()

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list["Trace"], timeout: aiohttp.ClientTimeout
    ) -> "Connection":
        """Return a connection for a request, new or used before."""
        connection = await super().connect(req, traces, timeout)
        if connection.transport is not None:
            self._opened.add(connection.transport)
        return connection

    def abort(self) -> None:
        """Drop all connections, and what they still had to send."""
        for transport in list(self._opened):
            sock = transport.get_extra_info("socket")
            # asyncio's own transports fail if they have closed once all was sent.
            if sock is not None and sock.fileno() != -1:
                transport.abort()
