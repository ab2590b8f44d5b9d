"""Connections: aiohttp's, with a way in for those that somebody else began, and a way back."""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import EMPTY_PAYLOAD, HttpVersion11, web
from aiohttp.web_protocol import RequestHandler

from shared import metrics, wire
from shared.protocol.reply import head_late

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
Refuse = Callable[[int, BaseException | None, str | None], web.Response]

_HEAD_END: Final = b"\r\n\r\n"
_LINE_BYTES_MAX: Final = 8190  # request line and each header
_HEADERS_MAX: Final = 100


class GivenBack(ConnectionError):
    """Ends a handler whose connection is somebody else's now: no reply is sent, nothing logged."""


class Connection(RequestHandler):
    """One connection.

    aiohttp has no public way to learn where its parser stands, so this looks at what it keeps to
    itself; tests hold each assumption against the version that is installed.
    """

    __slots__ = ("_at_head_end", "_head_due", "_header_s", "_received", "_refuse")

    def __init__(self, server: "Connections", received: bytes = b"", **options: Any) -> None:
        super().__init__(server, **options)
        self._refuse = server.refuse
        self._header_s = server.header_s
        self._head_due: asyncio.TimerHandle | None = None  # some of a head is here, and not all
        self._received = received
        self._at_head_end = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if self._received:
            # Before the transport reads: what it reads came later.
            received, self._received = self._received, b""
            self.data_received(received)

    def data_received(self, data: bytes) -> None:
        if data:  # aiohttp gives none to go on with what it kept
            self._at_head_end = data.endswith(_HEAD_END)
        super().data_received(data)
        if data:
            self._watch_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        """Begin to wait for the rest of a head, or end that."""
        waiter = self._waiter
        idle = not self._request_count or (waiter is not None and not waiter.done())
        if self._messages or not idle:
            if self._head_due is not None:
                self._head_due.cancel()
                self._head_due = None
        elif self._head_due is None:
            self._head_due = self._loop.call_later(self._header_s, self._expire_head)

    def _expire_head(self) -> None:
        """Close: aiohttp would keep who sends a byte now and then for ever."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        late = head_late(self._header_s)
        metrics.count_requests("other", late.status)  # no method may be here yet
        now_ms = time.time_ns() // 1_000_000
        transport.write(wire.encode_reply(late, now_ms, keep_alive=False))
        self.force_close()

    def hold_back(self) -> None:
        """Stop reading if the first bytes were too many: a transport that had not begun to read
        yet could not be told so."""
        if self._buffer_paused or self._reading_paused:
            self._pause_transport_reading()

    def let_go(self, request: web.BaseRequest) -> socket.socket | None:
        """Return a socket of this connection, and close only our own descriptor of it.

        None: it does not outlast this request, or more of it was received or waits to be sent.
        """
        transport = self.transport
        if (
            transport is None
            or transport.is_closing()
            or self._close
            or self._force_close
            or request.version != HttpVersion11
            or not request.keep_alive
            or request.content is not EMPTY_PAYLOAD
            or request.writer.output_size
            or not self._at_head_end
            or self._messages
            or self._upgraded
            or transport.get_write_buffer_size()
        ):
            return None
        own = transport.get_extra_info("socket")
        try:
            descriptor = os.dup(own.fileno())
        except OSError:
            return None  # the process has as many as it may: it stays where it is
        held = socket.socket(own.family, own.type, own.proto, descriptor)
        held.setblocking(False)
        transport.abort()  # reads no more from now on; the peer sees none of it, as we hold one
        return held

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if isinstance(exc, ConnectionError):
            raise exc  # there is nobody to answer
        response = self._refuse(status, exc, message)
        response.force_close()
        return response


class Connections(web.Server):
    """The connections of one listener: all that aiohttp serves for it."""

    def __init__(
        self, handler: Handler, refuse: Refuse, keepalive_s: float, header_s: float
    ) -> None:
        super().__init__(
            handler,
            # Without it, a reader that has left keeps its place until something is sent to it.
            handler_cancellation=True,
            access_log=None,
            tcp_keepalive=False,  # sockets inherit it from the one that listens
            keepalive_timeout=keepalive_s,
            max_line_size=_LINE_BYTES_MAX,
            max_field_size=_LINE_BYTES_MAX,
            max_headers=_HEADERS_MAX,
            auto_decompress=False,
        )
        self.refuse = refuse
        self.header_s = header_s

    def __call__(self) -> Connection:
        return self.connection()

    def connection(self, received: bytes = b"") -> Connection:
        """Return a new connection that begins with bytes that were received already."""
        return Connection(self, received, loop=self._loop, **self._kwargs)

    @property
    def count(self) -> int:
        """How many are open."""
        return len(self._connections)

    async def take(self, sock: socket.socket, received: bytes) -> None:
        """Serve a connection that somebody else has accepted, and perhaps read from.

        Args:
            sock: belongs to the connection from now on.
            received: what was read from it and not answered.
        """
        try:
            _, connection = await self._loop.connect_accepted_socket(
                lambda: self.connection(received), sock
            )
        except BaseException:
            sock.close()
            raise
        connection.hold_back()
