"""A connection on which a test writes any bytes it likes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from tests.http.api import ANSWER_TIMEOUT_S, Answer


@dataclass(slots=True)
class Wire:
    """One TCP connection."""

    host: str  # for a Host header
    _reader: asyncio.StreamReader
    _writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        """Send; a server that has hung up is no error here, its reply tells."""
        with suppress(ConnectionError):
            self._writer.write(data)
            await self._writer.drain()

    async def request(self, method: str, target: str, headers: str = "", body: bytes = b"") -> None:
        """Send a request of which only Host is given; headers are lines that end in CRLF."""
        head = f"{method} {target} HTTP/1.1\r\nHost: {self.host}\r\n{headers}\r\n"
        await self.send(head.encode("utf-8", "surrogateescape") + body)

    def end_sending(self) -> None:
        """Close our half of the connection."""
        self._writer.write_eof()

    async def reply(self, *, of_head: bool = False) -> Answer:
        """Read one reply; 100 Continue is one too.

        Raises:
            asyncio.IncompleteReadError: the connection ended without one, or inside it.
        """
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status_line, *lines = head.rstrip("\r\n").split("\r\n")
            version, status, _ = f"{status_line} ".split(" ", 2)
            assert version.startswith("HTTP/1."), status_line
            fields = CIMultiDict(_field(line) for line in lines)
            body = b""
            if not of_head and int(status) >= 200 and int(status) not in (204, 304):
                body = await self._body(fields)
            return Answer(int(status), CIMultiDictProxy(fields), body)

    async def has_ended(self) -> bool:
        """Wait until the server closes the connection; tell whether it did so without a word."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await self._reader.read() == b""
        except ConnectionError:
            return True

    async def _body(self, headers: CIMultiDict[str]) -> bytes:
        if headers.get("Transfer-Encoding", "").lower() == "chunked":
            pieces = []
            while size := int((await self._reader.readuntil(b"\r\n")).partition(b";")[0], 16):
                pieces.append(await self._reader.readexactly(size))
                assert await self._reader.readexactly(2) == b"\r\n"
            assert await self._reader.readuntil(b"\r\n") == b"\r\n"
            return b"".join(pieces)
        if "Content-Length" in headers:
            return await self._reader.readexactly(int(headers["Content-Length"]))
        return await self._reader.read()


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name, value.strip()


@asynccontextmanager
async def connect(url: str) -> AsyncIterator[Wire]:
    """Open a connection to a server."""
    where = URL(url)
    reader, writer = await asyncio.open_connection(where.host, where.port)
    try:
        yield Wire(f"{where.host}:{where.port}", reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
