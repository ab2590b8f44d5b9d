"""Getter: GETs of the upstream, one at a time on each of a few kept connections.

All that an edge has to learn comes through here, a first read for each stream that somebody waits
on. A client library for all of HTTP made such a read cost 140 µs, most of what a stream cost.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, cast

import httptools

# Shorter than any server keeps an idle connection, so that none closes under a request.
IDLE_S: Final = 15.0
_HEAD_BYTES_MAX: Final = 64 * 1024
# A foreign server may cut its reads where it likes; more than this is not a chunk.
BODY_BYTES_MAX: Final = 320 * 1024 * 1024
_WORDS_BYTES_MAX: Final = 4096  # of a refusal: what it says at length nobody reads
_BODILESS: Final = (204, 304)
_PIECE_BYTES: Final = 64  # what a piece of a body costs beside its bytes


class BrokenReply(Exception):
    """What comes is no reply, too much of one, or ends too soon."""


@dataclass(frozen=True, slots=True)
class Got:
    """A reply."""

    status: int
    headers: Mapping[str, str]  # names in small letters; of those that come twice, the first
    body: bytes  # of what is neither success nor 304, the beginning


class Getter:
    """The connections that reads of an upstream take in turn."""

    def __init__(
        self,
        connect: Callable[[Callable[[], asyncio.Protocol]], Awaitable[object]],
        host: str,
        connect_timeout_s: float,
    ) -> None:
        """Prepare; connects when it is asked something.

        Args:
            connect: opens a connection for a new protocol.
            host: what requests name as `Host`.
        """
        self._connect = connect
        self._host = host
        self._connect_timeout_s = connect_timeout_s
        self._idle: list[_Connection] = []  # the last one used is the first to be used again
        self._sweep: asyncio.TimerHandle | None = None  # while any are idle
        self._closed = False

    async def get(self, target: str, headers: Mapping[str, str], silence_s: float) -> Got:
        """Ask for a target as it is, and return the whole reply, whatever it says.

        Args:
            silence_s: how long nothing may come, from the request on.

        Raises:
            OSError: no connection, none any more, or nothing came in time.
            BrokenReply: what came makes no sense.
        """
        said = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"GET {target} HTTP/1.1\r\nHost: {self._host}\r\n{said}\r\n"
        request = head.encode("utf-8", "surrogateescape")  # a tag comes back as it was
        if (kept := self._take_idle()) is not None:
            try:
                return await self._ask(kept, request, silence_s)
            except ConnectionError:
                if kept.heard:
                    raise
                # It was about to be closed when it was asked: a read may be asked again.
        made = _Connection()
        async with asyncio.timeout(self._connect_timeout_s):
            await self._connect(lambda: made)
        return await self._ask(made, request, silence_s)

    def close(self) -> None:
        """Close all connections that are not in use, and keep none from now on."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        while self._idle:
            self._idle.pop().abort()

    def _take_idle(self) -> "_Connection | None":
        oldest_s = asyncio.get_running_loop().time() - IDLE_S
        while self._idle:
            kept = self._idle.pop()
            if kept.usable and kept.active_s > oldest_s:
                return kept
            kept.abort()
        return None

    async def _ask(self, connection: "_Connection", request: bytes, silence_s: float) -> Got:
        try:
            got = await connection.ask(request, silence_s)
        except BaseException:  # who leaves may leave half a reply behind
            connection.abort()
            raise
        if connection.usable and not self._closed:
            self._idle.append(connection)
            if self._sweep is None:
                self._sweep = asyncio.get_running_loop().call_later(IDLE_S, self._sweep_idle)
        else:
            connection.abort()
        return got

    def _sweep_idle(self) -> None:
        loop = asyncio.get_running_loop()
        oldest_s = loop.time() - IDLE_S
        for connection in self._idle:
            if connection.active_s <= oldest_s:
                connection.abort()
        self._idle = [connection for connection in self._idle if connection.usable]
        self._sweep = loop.call_later(IDLE_S, self._sweep_idle) if self._idle else None


class _Connection(asyncio.Protocol):
    """One connection; `ask` is called again only when the reply before is whole."""

    def __init__(self) -> None:
        self.heard = False  # anything, since it was asked
        self.active_s = 0.0
        self.usable = True
        self._transport: asyncio.Transport | None = None
        # It refers to this in turn: whoever ends lets go of it, and so leaves no cycle behind.
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._reply: asyncio.Future[Got] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._silence_s = 0.0
        self._start()

    def _start(self) -> None:
        """Forget the reply before."""
        self._status = 0  # 0: its head is not whole
        self._headers: dict[str, str] = {}
        self._head_bytes = 0
        self._pieces: list[bytes] = []
        self._body_bytes = 0

    def ask(self, request: bytes, silence_s: float) -> "asyncio.Future[Got]":
        """Send a request; the reply comes, an OSError, a TimeoutError or a BrokenReply."""
        loop = asyncio.get_running_loop()
        reply = self._reply = loop.create_future()
        self.heard = False
        if self._transport is None:
            self._fail(ConnectionResetError("the connection was closed"))
            return reply
        self.active_s = loop.time()
        self._silence_s = silence_s
        self._watch = loop.call_later(silence_s, self._look)
        self._transport.write(request)
        return reply

    def abort(self) -> None:
        """Close it, with whatever is on its way; not to be called by the parser."""
        self.usable = False
        self._parser = None
        self._start()
        if self._watch is not None:
            self._watch.cancel()
        if self._transport is not None:
            self._transport.abort()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        rest_s = self.active_s + self._silence_s - loop.time()
        if rest_s <= 0:
            self._fail(TimeoutError(f"nothing came for {self._silence_s:g} s"))
        else:
            self._watch = loop.call_later(rest_s, self._look)

    def _fail(self, error: Exception) -> None:
        self.abort()
        reply, self._reply = self._reply, None
        if reply is not None and not reply.done():
            reply.set_exception(error)

    def _deliver(self, *, keep: bool) -> None:
        self.usable = self.usable and keep
        if self._watch is not None:
            self._watch.cancel()
        pieces = self._pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        got = Got(self._status, self._headers, body)
        self._start()
        reply, self._reply = self._reply, None
        if reply is not None and not reply.done():
            reply.set_result(got)

    # --- what asyncio tells ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        framed = {"content-length", "transfer-encoding"} & self._headers.keys()
        if exc is None and self._status and not framed:
            self._deliver(keep=False)  # it ends where the connection does (RFC 9112 §6.3)
        self._fail(exc or ConnectionResetError("the connection was closed"))

    def data_received(self, data: bytes) -> None:
        if self._reply is None or self._parser is None:
            self.abort()  # whoever says something unasked is not understood
            return
        self.heard = True
        self.active_s = asyncio.get_running_loop().time()
        if not self._status:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
            if not self._status and self._head_bytes > _HEAD_BYTES_MAX:
                raise BrokenReply(f"its head has more than {_HEAD_BYTES_MAX} bytes")
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, BrokenReply) as error:
            self._fail(BrokenReply(_reason(error)))

    # --- what the parser finds -------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._reply is None:
            self.usable = False  # a reply behind the one that was asked for

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._status:
            return  # a trailer is no header (RFC 9110 §6.5.1)
        key = name.decode("latin-1").lower()
        self._headers.setdefault(key, value.decode("utf-8", "surrogateescape").strip(" \t"))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if not 100 <= status < 600:
            raise BrokenReply(f"it has the status {status}")
        if status >= 200:
            self._status = status
            length = self._headers.get("content-length", "")
            if status not in _BODILESS and length.isdecimal() and int(length) > BODY_BYTES_MAX:
                raise BrokenReply(f"it sends {length} bytes at once")

    def on_body(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._body_bytes += len(piece)
        if self._body_bytes + _PIECE_BYTES * len(self._pieces) > BODY_BYTES_MAX:
            raise BrokenReply(f"it sends more than {BODY_BYTES_MAX} bytes at once")
        if self._status not in (200, *_BODILESS) and self._body_bytes > _WORDS_BYTES_MAX:
            self._pieces = [b"".join(self._pieces)[:_WORDS_BYTES_MAX]]
            self._deliver(keep=False)

    def on_message_complete(self) -> None:
        if not self._status:
            self._headers = {}  # an interim reply, or what came after the one asked for
        else:
            assert self._parser is not None
            self._deliver(keep=self._parser.should_keep_alive())


def _reason(error: Exception) -> str:
    """Say what the parser, or within it one of ours, complains of."""
    ours = error.__context__
    return str(ours if isinstance(ours, BrokenReply) else error) or type(error).__name__
