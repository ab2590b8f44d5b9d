"""Plain requests: the GETs that the lane understands by itself; everything else is aiohttp's."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import httptools

from shared.protocol.errors import ProtocolError
from shared.protocol.request import Read, parse_path, parse_read

HEAD_BYTES_MAX: Final = 8190  # what aiohttp takes in one line: no longer head is plain
_HEADERS_MAX: Final = 100
_END: Final = b"\r\n\r\n"
_BEGINNING: Final = re.compile(rb"(?:\r\n)*\r?(?:[A-Z-]*\Z|[A-Z-]+ )")
_NEVER: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n")
# Whoever sends one of these wants more than a plain reply, or has a body to follow.
_NOT_PLAIN: Final = frozenset(
    (
        b"content-length",
        b"content-encoding",
        b"transfer-encoding",
        b"te",
        b"trailer",
        b"upgrade",
        b"expect",
        b"proxy-connection",
        b"keep-alive",
        b"http2-settings",
    )
)


@dataclass(frozen=True, slots=True)
class Plain:
    """A read in a complete, plain request."""

    path: str
    asked: Read
    keep_alive: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """A complete, plain request that the protocol refuses."""

    error: ProtocolError
    keep_alive: bool


class _Head:
    """What httptools finds."""

    __slots__ = ("complete", "headers", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = 0

    def on_url(self, target: bytes) -> None:
        self.target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_message_complete(self) -> None:
        self.complete += 1


class _Tags:
    """The one header that a read looks at, in the shape in which the rules look at headers."""

    __slots__ = ("_values",)

    def __init__(self, values: tuple[str, ...]) -> None:
        self._values = values

    def getall(self, key: str, default: Sequence[str], /) -> Sequence[str]:
        return self._values or default

    def items(self) -> list[tuple[str, str]]:
        return [("If-None-Match", value) for value in self._values]


def is_partial(received: bytes) -> bool:
    """Tell whether the rest of a request head may still come: what is whole, or can never become a
    request that anybody understands, is not waited for."""
    return (
        len(received) <= HEAD_BYTES_MAX
        and _END not in received
        and _BEGINNING.match(received) is not None
        and _NEVER.search(received) is None
    )


def parse_plain(received: bytes, prefix: str) -> Plain | Refusal | None:
    """Return the read in a request, or None for what is not exactly one complete, plain GET.

    Args:
        received: every byte that has come since the last request.
        prefix: where streams live.
    """
    if len(received) > HEAD_BYTES_MAX or received.find(_END) != len(received) - len(_END):
        return None
    # Control characters and odd spaces are where two parsers may differ.
    if not received.startswith(b"GET /") or received.count(b"\n") != received.count(b"\r\n"):
        return None
    return _parse(received, prefix)


# Readers of one stream send the same bytes over and over, and what they mean follows from the bytes
# alone. Common heads have 300 bytes; 8 MiB is the worst that somebody could make of it.
@lru_cache(maxsize=1024)
def _parse(received: bytes, prefix: str) -> Plain | Refusal | None:
    head = _Head()
    parser = httptools.HttpRequestParser(head)
    try:
        parser.feed_data(received)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    if head.complete != 1 or parser.get_http_version() != "1.1" or b"#" in head.target:
        return None
    fields = _fields(head.headers)
    if fields is None or not head.target.startswith(prefix.encode()):
        return None
    keep_alive, tags = fields
    path, _, query = head.target.decode("ascii").partition("?")
    try:
        return Plain(parse_path(path, prefix), parse_read(query, _Tags(tags)), keep_alive)
    except ProtocolError as error:
        # Kept as a value: without the frames that it came through, and what those hold.
        return Refusal(error.with_traceback(None), keep_alive)


def _fields(headers: list[tuple[bytes, bytes]]) -> tuple[bool, tuple[str, ...]] | None:
    """Return whether the connection stays, and If-None-Match; None if a header is not plain."""
    keep_alive = True
    seen: set[bytes] = set()
    tags: list[str] = []
    if len(headers) > _HEADERS_MAX:
        return None
    for name, value in headers:
        if name == b"if-none-match":
            if not value.isascii():
                return None
            tags.append(value.decode("ascii"))
            continue
        # Many may not be given twice, and what a server makes of it differs.
        if name in _NOT_PLAIN or name in seen:
            return None
        seen.add(name)
        if name == b"connection":
            if value.lower() not in (b"keep-alive", b"close"):
                return None
            keep_alive = value.lower() == b"keep-alive"
    return (keep_alive, tuple(tags)) if b"host" in seen else None
