"""Plain requests: the GETs and POSTs that a lane understands by itself; everything else is
aiohttp's."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import httptools

from shared.protocol.append import Append
from shared.protocol.errors import ProtocolError
from shared.protocol.request import Read, parse_append_head, parse_path, parse_read

HEAD_BYTES_MAX: Final = 8190  # what aiohttp takes in one line: no longer head is plain
_HEADERS_MAX: Final = 100
_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"[0-9]{1,9}")
_BEGINNING: Final = re.compile(rb"(?:\r\n)*\r?(?:[A-Z-]*\Z|[A-Z-]+ )")
_NEVER: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n")
# Whoever sends one of these wants more than a plain reply, or frames its body in another way.
_NOT_PLAIN: Final = frozenset(
    (
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
_RULED: Final = (b"if-", b"content-", b"stream-", b"producer-")  # headers that rules look at


@dataclass(frozen=True, slots=True)
class Plain:
    """A read in a complete, plain request."""

    path: str
    asked: Read
    keep_alive: bool


@dataclass(frozen=True, slots=True)
class PlainAppend:
    """The head of a plain append."""

    path: str
    asked: Append  # without its body
    size: int  # bytes of the body, which follows
    keep_alive: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """A plain request that the protocol refuses."""

    error: ProtocolError
    keep_alive: bool
    method: str = "GET"
    size: int = 0  # bytes of the body, which follows


@dataclass(frozen=True, slots=True)
class Passable:
    """The head of a plain append, rendered anew from what was found in it.

    So nothing is passed on that was not understood, and where its body ends is in no doubt.
    """

    head: bytes  # without headers of one hop
    size: int  # bytes of the body, which follows
    keep_alive: bool  # as its sender wants it


@dataclass(frozen=True, slots=True)
class _Found:
    """What a plain head consists of."""

    target: bytes
    fields: list[tuple[bytes, bytes]]  # names in small letters
    size: int | None  # of the body, if one is told
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
        # The parser takes only the space before a value away (RFC 9112 §5.1).
        self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_message_complete(self) -> None:
        self.complete += 1


class _Headers:
    """Headers in the shape in which the rules look at them."""

    __slots__ = ("_fields",)

    def __init__(self, fields: list[tuple[str, str]]) -> None:
        self._fields = fields

    def getall(self, key: str, default: Sequence[str], /) -> Sequence[str]:
        key = key.lower()
        return [value for name, value in self._fields if name == key] or default

    def items(self) -> list[tuple[str, str]]:
        return self._fields


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
    if received.find(_END) != len(received) - len(_END) or not received.startswith(b"GET "):
        return None
    found = parse_head(received, prefix)
    assert not isinstance(found, PlainAppend)
    return found


def parse_head(head: bytes, prefix: str) -> Plain | PlainAppend | Refusal | None:
    """Return what a request head asks for, or None for what is no plain GET or POST.

    Args:
        head: up to and including the empty line.
        prefix: where streams live.
    """
    if len(head) > HEAD_BYTES_MAX:
        return None
    if head.startswith(b"GET /"):
        return _parse_often(head, prefix)
    if not head.startswith(b"POST /"):
        return None
    return (_parse if _is_counted(head) else _parse_often)(head, prefix)


def parse_passable(head: bytes, prefix: str) -> Passable | None:
    """Return the head of an append as it may be passed on, or None if it is not plain.

    Args:
        head: up to and including the empty line.
        prefix: where streams live.
    """
    if len(head) > HEAD_BYTES_MAX or not head.startswith(b"POST /"):
        return None
    return (_pass if _is_counted(head) else _pass_often)(head, prefix)


def forwarded_scheme(told: str) -> str:
    """Return the scheme that a client used, as whatever ends TLS before us tells it in
    X-Forwarded-Proto; what makes no sense counts as nothing told."""
    return told.lower() if told.lower() in ("http", "https") else "http"


def _is_counted(head: bytes) -> bool:
    """Tell whether it is different in every append, as a producer's is, or that of who traces: no
    such head is kept."""
    return b"eq:" in head or b"traceparent:" in head


def _pass(head: bytes, prefix: str) -> Passable | None:
    found = _find(head, prefix)
    if found is None or found.size is None:
        return None
    lines, scheme = [b"POST " + found.target + b" HTTP/1.1\r\n"], b"http"
    for name, value in found.fields:
        if not value.isascii():
            return None  # others spell it anew
        if name == b"x-forwarded-proto":
            scheme = forwarded_scheme(value.decode()).encode()
        elif name != b"connection":
            lines.append(name + b": " + value + b"\r\n")
    lines.append(b"x-forwarded-proto: " + scheme + b"\r\n\r\n")
    passed = b"".join(lines)
    # What the next server would not find plain is nothing for a connection that many share.
    if len(passed) > HEAD_BYTES_MAX or len(lines) > _HEADERS_MAX:
        return None
    return Passable(passed, found.size, found.keep_alive)


def _parse(head: bytes, prefix: str) -> Plain | PlainAppend | Refusal | None:
    found = _find(head, prefix)
    if found is None:
        return None
    keep_alive, size = found.keep_alive, found.size
    fields = []
    for field, value in found.fields:
        if value.isascii():
            fields.append((field.decode(), value.decode()))
        elif field.startswith(_RULED):  # other alphabets are another place where they may differ
            return None
    path, _, query = found.target.decode().partition("?")
    try:
        name = parse_path(path, prefix)
        if size is None:
            return Plain(name, parse_read(query, _Headers(fields)), keep_alive)
        asked = parse_append_head(_Headers(fields), empty=not size)
        return PlainAppend(name, asked, size, keep_alive)
    except ProtocolError as error:
        # Kept as a value: without the frames that it came through, and what those hold.
        method = "GET" if size is None else "POST"
        return Refusal(error.with_traceback(None), keep_alive, method, size or 0)


def _find(head: bytes, prefix: str) -> _Found | None:
    """Return what a plain head consists of."""
    # Control characters and odd spaces are where two parsers may differ.
    if head.count(b"\n") != head.count(b"\r\n"):
        return None
    found = _Head()
    parser = httptools.HttpRequestParser(found)
    try:
        parser.feed_data(head)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    target = found.target
    if parser.get_http_version() != "1.1" or b"#" in target or not target.isascii():
        return None
    if len(found.headers) > _HEADERS_MAX or not target.startswith(prefix.encode()):
        return None
    framing = _framing(found.headers)
    if framing is None:
        return None
    keep_alive, size = framing
    reads = head.startswith(b"GET")
    if (size is not None) == reads or (reads and not found.complete):
        return None
    return _Found(target, found.headers, size, keep_alive)


# Readers of one stream send the same bytes over and over, and what they mean follows from the bytes
# alone. Common heads have 300 bytes; 8 MiB is the worst that somebody could make of it.
_parse_often = lru_cache(maxsize=1024)(_parse)
_pass_often = lru_cache(maxsize=1024)(_pass)


def _framing(headers: list[tuple[bytes, bytes]]) -> tuple[bool, int | None] | None:
    """Return whether the connection stays, and the length of the body if one is told; None if a
    header is not plain."""
    keep_alive = True
    size: int | None = None
    seen: set[bytes] = set()
    for name, value in headers:
        if name == b"if-none-match":
            continue
        # Many may not be given twice, and what a server makes of it differs.
        if name in _NOT_PLAIN or name in seen:
            return None
        seen.add(name)
        if name == b"connection":
            if value.lower() not in (b"keep-alive", b"close"):
                return None
            keep_alive = value.lower() == b"keep-alive"
        elif name == b"content-length":
            if _LENGTH.fullmatch(value) is None:
                return None
            size = int(value)
    return (keep_alive, size) if b"host" in seen else None
