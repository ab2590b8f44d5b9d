"""The smallest HTTP/1.1 client: requests built once, replies parsed only as far as a figure needs.

What it leaves out (redirects, compression, trailers, pipelining) is left out so that the servers,
and never this client, are what a scenario measures.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

READ_BYTES: Final = 1 << 16
HEAD_BYTES_MAX: Final = 1 << 16
HEAD_END: Final = b"\r\n\r\n"
STREAMS: Final = "/v1/stream/"
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.1 ([1-5]\d\d)[ \r]")
_BODILESS: Final = frozenset({204, 304})


class BadReply(Exception):
    """The peer sent what HTTP/1.1 does not allow, or not what the scenario asked for."""


@dataclass(frozen=True, slots=True)
class Head:
    """The start of a reply: how it went, and how long its body is."""

    status: int
    raw: bytes  # status line and fields, without the empty line
    length: int | None  # bytes of the body; None: chunked, or until the peer closes
    chunked: bool

    @property
    def size(self) -> int:
        """Bytes before the body."""
        return len(self.raw) + len(HEAD_END)

    def field(self, name: str) -> str | None:
        """Return the value of a header field, whatever the case of its name."""
        return _field(self.raw, name.encode())


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole reply; `size` is how many bytes it took on the wire."""

    head: Head
    body: bytes
    size: int


def _field(raw: bytes, name: bytes) -> str | None:
    mark = b"\r\n" + name.lower() + b":"
    start = raw.lower().find(mark)
    if start < 0:
        return None
    start += len(mark)
    end = raw.find(b"\r\n", start)
    return raw[start : end if end >= 0 else len(raw)].strip().decode("latin-1")


def parse_head(data: bytes) -> Head | None:
    """Parse the head of a reply; None if data does not hold all of it yet.

    Raises:
        BadReply: this is not an HTTP/1.1 reply, or its head is beyond 64 KiB.
    """
    end = data.find(HEAD_END)
    if end < 0:
        if len(data) > HEAD_BYTES_MAX:
            raise BadReply(f"a head of more than {HEAD_BYTES_MAX} bytes: {data[:80]!r}")
        return None
    raw = data[:end]
    line = _STATUS_LINE.match(data)
    if line is None:
        raise BadReply(f"not an HTTP/1.1 reply: {data[:80]!r}")
    status = int(line[1])
    if status in _BODILESS:
        return Head(status, raw, 0, chunked=False)
    length = _field(raw, b"content-length")
    chunked = (_field(raw, b"transfer-encoding") or "").lower() == "chunked"
    return Head(status, raw, int(length) if length and not chunked else None, chunked)


def unchunk(data: bytes, at: int = 0) -> tuple[bytes, int, bool]:
    """Take the whole chunks of a chunked body that begin at `at`.

    Returns:
        Their payload, where the first chunk begins that is not whole yet, and whether the last
        chunk was among them.

    Raises:
        BadReply: a chunk's size is no number.
    """
    parts: list[bytes] = []
    while True:
        line_end = data.find(b"\r\n", at)
        if line_end < 0:
            return b"".join(parts), at, False
        try:
            size = int(data[at:line_end].split(b";")[0], 16)
        except ValueError:
            raise BadReply(f"not the size of a chunk: {data[at : at + 20]!r}") from None
        end = line_end + 2 + size
        if len(data) < end + 2:
            return b"".join(parts), at, False
        parts.append(data[line_end + 2 : end])
        at = end + 2
        if size == 0:
            return b"".join(parts), at, True


def parse_reply(data: bytes) -> Reply | None:
    """Parse one whole reply from the front of data; None while some of it is missing.

    Raises:
        BadReply: as parse_head and unchunk, or the reply would end only with the connection.
    """
    head = parse_head(data)
    if head is None:
        return None
    if head.chunked:
        body, end, ended = unchunk(data, head.size)
        return Reply(head, body, end) if ended else None
    if head.length is None:
        raise BadReply(f"a reply without a length: {head.raw[:80]!r}")
    end = head.size + head.length
    return Reply(head, data[head.size : end], end) if len(data) >= end else None


@dataclass(frozen=True, slots=True)
class Target:
    """Where a server listens, and the requests to it as bytes."""

    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Target:
        """Read http://host:port; the path, if any, is dropped."""
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"expected http://host:port, received {url!r}")
        return cls(parts.hostname, parts.port or 80)

    def request(self, method: str, path: str, *fields: str, body: bytes | None = None) -> bytes:
        """Build a whole request; `fields` are header lines without their line ends."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}:{self.port}", *fields]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join(lines).encode() + HEAD_END + (body or b"")

    def connect(self, source: str = "", timeout_s: float | None = 30.0) -> socket.socket:
        """Open a TCP connection, from the address `source` if one is given."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if source:
                # Choose the port at connect, where it need only be unused towards this server.
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((source, 0))
            sock.connect((self.host, self.port))
        except BaseException:
            sock.close()
            raise
        return sock

    def begin_connect(self, source: tuple[str, int]) -> tuple[socket.socket, bool]:
        """Open a connection from an address and port without waiting.

        Returns:
            A socket that does not block, and whether it is connected already. Over loopback it is,
            unless the server's accept queue is full; then it gets writable once its fate is known.
        """
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            # A port that an earlier connection has left a moment ago will do.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(source)
            code = sock.connect_ex((self.host, self.port))
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
        except BaseException:
            sock.close()
            raise
        return sock, code == 0


def _may_be_whole(head: Head, received: bytearray) -> bool:
    if head.length is not None:
        return len(received) >= head.size + head.length
    return not head.chunked or received.endswith(b"0\r\n\r\n")


class Connection:
    """One blocking connection, for what a scenario does outside its timed part."""

    def __init__(self, target: Target, timeout_s: float = 60.0) -> None:
        """Connect; every wait on the server is bounded by timeout_s."""
        self.target = target
        self._socket = target.connect(timeout_s=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def exchange(self, request: bytes) -> Reply:
        """Send a request and return its whole reply."""
        self._socket.sendall(request)
        received = bytearray()
        head: Head | None = None
        while True:
            part = self._socket.recv(READ_BYTES)
            if not part:
                raise BadReply(f"the connection ended after {len(received)} bytes of a reply")
            received += part
            head = head or parse_head(bytes(received))
            # Look again only when it can be whole: 100 MB are not parsed anew at every read.
            if head is None or not _may_be_whole(head, received):
                continue
            reply = parse_reply(bytes(received))
            if reply is not None:
                return reply

    def ask(
        self, method: str, path: str, *fields: str, body: bytes | None = None, expect: int = 200
    ) -> Reply:
        """Send a request that must succeed with the status `expect`, and return its reply.

        Raises:
            BadReply: another status; the message has the start of the body.
        """
        reply = self.exchange(self.target.request(method, path, *fields, body=body))
        if reply.head.status != expect:
            raise BadReply(
                f"{method} {path}: expected {expect}, received {reply.head.status}: "
                f"{reply.body[:200].decode('latin-1')}"
            )
        return reply

    def send_append(self, request: bytes) -> None:
        """Send a request that appends, and wait for its answer.

        Raises:
            BadReply: it is not acknowledged.
        """
        reply = self.exchange(request)
        if not 200 <= reply.head.status < 300:
            raise BadReply(f"append: {reply.head.status}: {reply.body[:200].decode('latin-1')}")

    def create(self, path: str, content_type: str) -> str:
        """Create a stream and return the offset of its tail."""
        reply = self.ask("PUT", path, f"Content-Type: {content_type}", body=b"", expect=201)
        return required(reply.head, "Stream-Next-Offset")


def required(head: Head, name: str) -> str:
    """Return a header field that the protocol promises.

    Raises:
        BadReply: it is missing.
    """
    value = head.field(name)
    if value is None:
        raise BadReply(f"a reply {head.status} without {name}")
    return value
