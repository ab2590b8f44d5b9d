"""An edge with real sockets in the test's own process, before a real origin in memory."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import uvloop

from edge.app import Edge, open_edge
from edge.lane import Lane
from origin.app import drain as drain_origin
from origin.app import open_origin
from origin.memory import MemoryJournal
from shared.clock import SystemClock
from shared.config import Settings
from shared.memory_bus import MemoryBus
from shared.sockets import listen_tcp, listen_unix
from shared.web import Listener
from tests.fakes import NOON_MS
from tests.session import quiet_session

PREFIX = "/v1/stream/"
DEADLINE_S = 20.0  # for what takes milliseconds
LITTLE = 4096  # what the kernel of a slow reader holds, more or less
BIG = os.urandom(1_000_000)  # more than any kernel takes at once


class SameDay(SystemClock):
    """Waits as long as any clock, but every reply says the same time."""

    def now_ms(self) -> int:
        return NOON_MS


@dataclass(frozen=True, slots=True)
class Served:
    """An origin, an edge whose lane listens, and aiohttp alone on the same source."""

    edge: Edge
    lane_port: int
    aiohttp_port: int
    session: aiohttp.ClientSession

    @property
    def lane(self) -> Lane:
        return self.edge.lane

    async def write(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> aiohttp.ClientResponse:
        """Send a write through the edge; underscores in header names stand for hyphens."""
        async with self.session.request(
            method,
            f"http://127.0.0.1:{self.lane_port}{PREFIX}{path}",
            data=io.BytesIO(body) if body else None,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        ) as reply:
            assert reply.status < 300, (reply.status, await reply.text())
            return reply

    async def create(self, path: str, body: bytes = b"", **headers: str) -> str:
        """Create a text stream; return its tail."""
        reply = await self.write("PUT", path, body, **({"Content_Type": "text/plain"} | headers))
        return reply.headers["Stream-Next-Offset"]

    async def append(self, path: str, body: bytes, **headers: str) -> str:
        """Append text; return the tail."""
        reply = await self.write("POST", path, body, **({"Content_Type": "text/plain"} | headers))
        return reply.headers["Stream-Next-Offset"]

    async def connect(self, port: int | None = None, receive_bytes: int | None = None) -> Line:
        """Open a connection to the lane, or to a port.

        Args:
            receive_bytes: how little the kernel holds that the test has not read.
        """
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a second write is sent at once
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        try:
            await asyncio.get_running_loop().sock_connect(
                sock, ("127.0.0.1", port or self.lane_port)
            )
        except OSError:
            sock.close()
            raise
        return Line(sock)


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply; headers in order of their names, without Date."""

    version: str
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name.lower())

    @property
    def next(self) -> str:
        return dict(self.headers)["stream-next-offset"]


class Ended(Exception):
    """The server has closed the connection where a reply may begin."""


@dataclass(slots=True)
class Line:
    """A connection on which a test writes any bytes it likes.

    A bare socket: what came before a reset is read all the same.
    """

    sock: socket.socket
    was_reset: bool = False
    _buffer: bytearray = field(default_factory=bytearray)

    @property
    def port(self) -> int:
        return int(self.sock.getsockname()[1])

    async def send(self, data: bytes) -> None:
        """Send; whether the server has hung up, its replies tell."""
        with suppress(ConnectionError):
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def ask(self, target: str, *fields: str, method: str = "GET", body: bytes = b"") -> None:
        """Send a request for a path below the prefix."""
        await self.send(asking(target, *fields, method=method, body=body))

    async def read(self) -> bool:
        """Take what comes next; False at the end."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                piece = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
        except ConnectionError:
            self.was_reset = True
            return False
        self._buffer += piece
        return bool(piece)

    async def take(self, size: int) -> bytes:
        """Return exactly so many bytes."""
        while len(self._buffer) < size:
            assert await self.read(), f"ends inside a reply: {bytes(self._buffer[:200])!r}"
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    async def take_until(self, end: bytes) -> bytes:
        """Return bytes up to an end, and that."""
        while (place := self._buffer.find(end)) < 0:
            if not await self.read():
                assert not self._buffer, f"ends inside a reply: {bytes(self._buffer[:200])!r}"
                raise Ended
        return await self.take(place + len(end))

    async def head(self) -> Reply:
        """Read the head of a reply.

        Raises:
            Ended: there is none, and never will be.
        """
        text = (await self.take_until(b"\r\n\r\n")).decode("latin-1")
        status_line, *lines = text[:-4].split("\r\n")
        version, status, _ = f"{status_line} ".split(" ", 2)
        fields = [(line.partition(":")[0].lower(), line.partition(":")[2]) for line in lines]
        assert all(value.startswith(" ") for _, value in fields)
        assert [name for name, _ in fields].count("date") == (int(status) >= 200)
        told = sorted((name, value[1:]) for name, value in fields if name != "date")
        return Reply(version, int(status), tuple(told))

    async def reply(self, method: str = "GET") -> Reply:
        """Read a whole reply.

        Raises:
            Ended: there is none, and never will be.
        """
        head = await self.head()
        if method == "HEAD" or head.status < 200 or head.status in (204, 304):
            return head
        if head.header("transfer-encoding") == "chunked":
            body = b""
            while frame := await self.frame():
                body += frame
        elif (length := head.header("content-length")) is not None:
            body = await self.take(int(length))
        else:  # HTTP/1.0: the end of the connection is the end of the body
            while await self.read():
                pass
            body = await self.take(len(self._buffer))
        return replace(head, body=body)

    async def frame(self) -> bytes:
        """Read one frame of a chunked body; the last is empty."""
        size = int(await self.take_until(b"\r\n"), 16)
        frame = await self.take(size + 2)
        assert frame.endswith(b"\r\n")
        return frame[:-2]

    async def ended(self) -> None:
        """Wait until the server closes in good order, without another byte."""
        while await self.read():
            pass
        assert not self._buffer, bytes(self._buffer[:200])
        assert not self.was_reset

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Break off, as a peer does that is gone."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def asking(target: str, *fields: str, method: str = "GET", body: bytes = b"") -> bytes:
    """Return a request for a path below the prefix."""
    if body:
        fields = (*fields, f"Content-Length: {len(body)}", "Content-Type: text/plain")
    lines = [f"{method} {PREFIX}{target} HTTP/1.1", "Host: x", *fields]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body


@asynccontextmanager
async def served(*, same_day: bool = False, **changes: Any) -> AsyncIterator[Served]:
    """Serve an edge, with settings other than the usual ones."""
    with TemporaryDirectory(prefix="headwater-served-") as folder:
        socket_path = Path(folder, "origin")
        clock = SameDay() if same_day else SystemClock()
        settings = replace(Settings(), socket=socket_path, upstream_socket=socket_path, **changes)
        bus = MemoryBus()
        async with open_origin(settings, MemoryJournal(), [bus.publisher()], clock) as origin:
            await origin.lane.listen(listen_unix(socket_path))
            async with open_edge(settings, bus.subscriber(), clock) as edge:
                sock = listen_tcp("127.0.0.1", 0)
                port = int(sock.getsockname()[1])
                edge.lane.listen(sock)
                alone = Listener(lambda request: plain.handle(request))
                plain = replace(edge.handlers, listener=alone, lane=None)
                plain_port = await alone.listen()
                try:
                    async with quiet_session(aiohttp.ClientTimeout(), force_close=True) as session:
                        yield Served(edge, port, plain_port, session)
                finally:
                    await alone.drain(0)
                    await edge.handlers.listener.drain(0)
                    origin.handlers.reading.release(0)
                    await drain_origin(origin, 0.0)


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a story on the loop of a service; whatever it complains of is a failure."""
    complaints: list[dict[str, Any]] = []

    async def told() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        await story()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(told())
    assert complaints == []


async def until(condition: Callable[[], object]) -> None:
    """Return once a condition holds; fail the test if it does not in time."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110  # the loop's own work makes it so
            await asyncio.sleep(0.002)


async def parked(here: Served, count: int) -> None:
    """Return once so many live readers wait."""
    await until(lambda: here.lane._parked.polls + here.lane._parked.streams == count)


async def great(here: Served) -> str:
    """Create a stream of one chunk that no kernel takes at once; return its tail."""
    await here.create("great", Content_Type="a/b")
    return await here.append("great", BIG, Content_Type="a/b")
