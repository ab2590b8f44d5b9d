"""Unix-socket bus: the origin listens, each edge of the machine has one connection to it."""

import asyncio
import logging
import socket
from pathlib import Path
from typing import Final, cast

from shared import metrics
from shared.bus import OnDoubt, OnWake
from shared.interest import Interest
from shared.reconnect import keep_connected
from shared.unix_frames import (
    BrokenFrame,
    Frames,
    Kind,
    decode_paths,
    decode_wake_body,
    encode_frame,
    encode_paths,
    encode_wake_frame,
)
from shared.wake import ForeignWake, Wake

_log = logging.getLogger(__name__)

# What waits for an edge that does not read: thousands of the largest wakes, or some seconds of it.
BUFFER_BYTES_MAX: Final = 8 * 1024 * 1024
# Asked of the kernel: what it holds is in the edge's receive buffer before publish returns.
_SEND_BUFFER_BYTES: Final = 1024 * 1024
_BACKLOG: Final = 512  # twice the edges of one machine, which all come back at once
_CONNECT_TIMEOUT_S: Final = 1.0
_CLOSE_TIMEOUT_S: Final = 1.0


class UnixPublisher:
    """The origin's end: sends a wake only to edges that subscribed to the stream."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: of the socket; whatever socket is there is replaced.
        """
        self._path = path
        self._server: asyncio.Server | None = None
        self._edges: set[_Edge] = set()
        self._listeners: dict[str, set[_Edge]] = {}

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the socket can't be made.
        """
        assert self._server is None
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: _Edge(self), str(self._path), backlog=_BACKLOG
        )
        self._path.chmod(0o600)

    def publish(self, path: str, wake: Wake) -> None:
        """Write to the sockets at once, so that edges have the wake before whoever wrote has its
        answer."""
        metrics.WAKES_PUBLISHED.inc()
        listeners = self._listeners.get(path)
        if not listeners:
            return
        frame = encode_wake_frame(path, wake)
        for edge in tuple(listeners):  # one that is dropped leaves the set
            edge.send(frame)

    async def close(self) -> None:
        """Stop listening, and disconnect every edge once it has what was sent."""
        if self._server is None:
            return
        self._path.unlink(missing_ok=True)
        self._server.close()
        gone = [edge.gone for edge in self._edges]
        for edge in self._edges:
            edge.transport.close()
        if gone:
            await asyncio.wait(gone, timeout=_CLOSE_TIMEOUT_S)
        for edge in self._edges:
            edge.transport.abort()
        await self._server.wait_closed()
        self._server = None

    # --- for the connections ---------------------------------------------------------------------

    def join(self, edge: "_Edge") -> None:
        self._edges.add(edge)

    def listen(self, edge: "_Edge", path: str) -> None:
        edge.paths.add(path)
        self._listeners.setdefault(path, set()).add(edge)

    def unlisten(self, edge: "_Edge", path: str) -> None:
        edge.paths.discard(path)
        listeners = self._listeners.get(path, set())
        listeners.discard(edge)
        if not listeners:
            self._listeners.pop(path, None)

    def leave(self, edge: "_Edge") -> None:
        self._edges.discard(edge)
        for path in list(edge.paths):
            self.unlisten(edge, path)


class _Edge(asyncio.Protocol):
    """A connected edge, at the origin."""

    transport: asyncio.Transport

    def __init__(self, publisher: UnixPublisher) -> None:
        self._publisher = publisher
        self._frames = Frames()
        self.paths: set[str] = set()
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one by shape alone
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._publisher.join(self)

    def data_received(self, data: bytes) -> None:
        try:
            for kind, body in self._frames.feed(data):
                if self.transport.is_closing():
                    return  # dropped: it must not join again
                self._take(kind, body)
        except BrokenFrame as error:
            self._drop("broken", error)

    def _take(self, kind: Kind, body: bytes) -> None:
        if kind not in (Kind.SUBSCRIBE, Kind.UNSUBSCRIBE):
            raise BrokenFrame(f"an edge sent {kind}")
        change = self._publisher.listen if kind is Kind.SUBSCRIBE else self._publisher.unlisten
        for path in decode_paths(body):
            change(self, path)
        self.send(encode_frame(Kind.DONE, body))

    def send(self, frame: bytes) -> None:
        """Write now what the kernel takes, and keep the rest if it is not too much."""
        if self.transport.is_closing():
            return
        self.transport.write(frame)
        if self.transport.get_write_buffer_size() > BUFFER_BYTES_MAX:
            metrics.WAKES_DROPPED.labels("slow").inc()
            self._drop("slow", f"{self.transport.get_write_buffer_size()} bytes wait")

    def _drop(self, reason: str, detail: object) -> None:
        _log.warning("bus drops an edge: reason=%s detail=%s", reason, detail)
        self._publisher.leave(self)
        self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._publisher.leave(self)
        self.gone.set_result(None)


class UnixSubscriber:
    """An edge's end."""

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: of the socket on which the origin listens, now or later.
        """
        self._path = path
        self._interest = Interest()
        self._task: asyncio.Task[None] | None = None

    async def start(self, on_wake: OnWake, on_doubt: OnDoubt) -> None:
        assert self._task is None
        self._on_wake = on_wake
        self._interest.begin(on_doubt)
        self._task = asyncio.create_task(keep_connected(f"unix:{self._path}", self._live))
        await self._interest.tried()

    async def subscribe(self, path: str) -> bool:
        return await self._interest.want(path)

    def unsubscribe(self, path: str) -> None:
        self._interest.unwant(path)

    @property
    def up(self) -> bool:
        return self._interest.up

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _live(self) -> None:
        loop = asyncio.get_running_loop()
        transport: asyncio.Transport | None = None
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                transport, origin = await loop.create_unix_connection(
                    lambda: _Origin(self._interest, self._on_wake), str(self._path)
                )
            _log.info("bus connected: server=unix:%s", self._path)
            self._interest.connected()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._ask(transport))
                raise await origin.lost
        finally:
            if transport is not None:
                transport.abort()
            self._interest.lost()

    async def _ask(self, transport: asyncio.Transport) -> None:
        while True:
            subscribe, unsubscribe = await self._interest.next_commands()
            for kind, paths in ((Kind.SUBSCRIBE, subscribe), (Kind.UNSUBSCRIBE, unsubscribe)):
                if paths:
                    transport.write(encode_frame(kind, encode_paths(paths)))


class _Origin(asyncio.Protocol):
    """The origin, as an edge is connected to it."""

    def __init__(self, interest: Interest, on_wake: OnWake) -> None:
        self._interest = interest
        self._on_wake = on_wake
        self._frames = Frames()
        self.lost: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        if self.lost.done():
            return
        try:
            for kind, body in self._frames.feed(data):
                self._take(kind, body)
        except Exception as error:
            self.lost.set_result(error)

    def _take(self, kind: Kind, body: bytes) -> None:
        if kind is Kind.WAKE:
            try:
                path, wake = decode_wake_body(body)
            except ForeignWake:
                metrics.WAKES_RECEIVED.labels("foreign").inc()
                return
            if path in self._interest:
                self._on_wake(path, wake)
        elif kind is Kind.DONE:
            for path in decode_paths(body):
                self._interest.answered(path)
        else:
            raise BrokenFrame(f"the origin sent {kind}")

    def connection_lost(self, error: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(error or ConnectionResetError("the origin hung up"))
