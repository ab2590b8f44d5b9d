"""Requests as typed values: paths, headers and queries in; Create, Append and Read out."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final, Protocol
from urllib.parse import unquote_plus, unquote_to_bytes

from shared.protocol import names
from shared.protocol.append import Append
from shared.protocol.errors import BadRequest, NotFound, UnsupportedEncoding
from shared.protocol.expiry import parse_expiry
from shared.protocol.media import parse_content_type
from shared.protocol.offset import check_token
from shared.protocol.precondition import IfMatch, parse_if_match
from shared.protocol.producer import ProducerKey
from shared.protocol.retention import parse_retention
from shared.protocol.stream import Create

_INTEGER = re.compile(r"0|[1-9][0-9]{0,15}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


class Headers(Protocol):
    """What is read of request headers: names in any case, in the order in which they came."""

    def getall(self, key: str, default: Sequence[str], /) -> Sequence[str]:
        """Return every value of a header."""
        ...

    def items(self) -> Iterable[tuple[str, str]]:
        """Return every header, one by one."""
        ...


_CONTENT_TYPE: Final = "Content-Type"
_CONTENT_ENCODING: Final = "Content-Encoding"
_IF_MATCH: Final = "If-Match"
_TRACE: Final = "traceparent"
_PRODUCER: Final = (names.PRODUCER_ID, names.PRODUCER_EPOCH, names.PRODUCER_SEQ)
_KNOWN: Final = {
    name.lower(): name
    for name in (
        _CONTENT_TYPE,
        _CONTENT_ENCODING,
        _IF_MATCH,
        _TRACE,
        names.STREAM_TTL,
        names.STREAM_EXPIRES_AT,
        names.STREAM_RETENTION_AGE,
        names.STREAM_RETENTION_BYTES,
        names.STREAM_SEQ,
        names.STREAM_CLOSED,
        names.STREAM_FORKED_FROM,
        names.STREAM_FORK_OFFSET,
        names.STREAM_FORK_SUB_OFFSET,
        *_PRODUCER,
    )
}

Given = Mapping[str, str | None]  # header by its name; None: given more than once


class Live(Enum):
    """How a read waits for what is not there yet (PROTOCOL §5.7, §5.8)."""

    LONG_POLL = "long-poll"
    SSE = "sse"


@dataclass(frozen=True, slots=True)
class Read:
    """A GET: from where, and whether it waits."""

    offset: str  # a sentinel, or a token that its server will judge
    live: Live | None = None
    cursor: str | None = None
    if_none_match: str | None = None


@lru_cache(maxsize=4096)  # of at most 3 KiB each: those in use are asked for over and over
def parse_path(raw_path: str, prefix: str) -> str:
    """Return the stream path below prefix, percent-decoded.

    Paths are opaque, but no two spellings may meet at one stream behind a proxy that tidies URLs,
    and none may look like a way up: an escaped slash, an empty or a dot segment is refused.

    Raises:
        NotFound: not below prefix, or reserved.
        BadRequest: malformed; names what and where.
    """
    if not raw_path.startswith(prefix):
        raise NotFound(raw_path[:128])
    raw = raw_path[len(prefix) :]
    if not raw:
        raise NotFound(raw_path[:128])
    shown = raw[:128]
    if len(raw) > 3 * names.PATH_BYTES_MAX:
        raise _long_path(len(raw))
    if _BAD_ESCAPE.search(raw):
        raise BadRequest(f"invalid percent-escape in path {shown!r}")
    if "%2f" in raw.lower() or "%5c" in raw.lower() or "\\" in raw:
        raise BadRequest(f"escaped slash or backslash in path {shown!r}")
    decoded = unquote_to_bytes(raw.encode("utf-8", "surrogateescape"))
    if len(decoded) > names.PATH_BYTES_MAX:
        raise _long_path(len(decoded))
    try:
        path = decoded.decode()
    except UnicodeDecodeError:
        raise BadRequest(f"path {shown!r} is not UTF-8") from None
    if _CONTROL.search(path):
        raise BadRequest(f"control character in path {shown!r}")
    segments = path.split("/")
    if any(segment in (".", "..") for segment in segments):
        raise BadRequest(f"dot segment in path {shown!r}")
    if "" in segments[:-1]:
        raise BadRequest(f"empty segment in path {shown!r}")
    if segments[0] == names.RESERVED_SEGMENT:
        raise NotFound(path)
    return path


def parse_read(query: str, headers: Headers) -> Read:
    """Parse a GET.

    Args:
        query: the raw query string. Unknown parameters are ignored; they never change an answer.

    Raises:
        ProtocolError: a known parameter is given twice, malformed, or missing.
    """
    known = _known_parameters(query)
    live = None
    if names.LIVE in known:
        try:
            live = Live(known[names.LIVE])
        except ValueError:
            raise BadRequest(f"invalid live={known[names.LIVE][:64]!r}: long-poll or sse") from None
        if names.OFFSET not in known:
            raise BadRequest(f"live={live.value} needs an offset")
    offset = check_token(known.get(names.OFFSET, names.BEGINNING))
    return Read(offset, live, known.get(names.CURSOR), _joined(headers, "If-None-Match"))


def parse_append(headers: Headers, body: bytes) -> Append:
    """Parse a POST.

    Raises:
        ProtocolError: a header is given twice, malformed, or missing beside its fellows.
    """
    return parse_append_head(headers, empty=not body).with_body(body)


def parse_append_head(headers: Headers, *, empty: bool) -> Append:
    """Parse a POST whose body is still to come; see parse_append."""
    given = _pick(headers)
    _check_encoding(given)
    # A body that is not there has no type to be wrong (PROTOCOL §5.2).
    content_type = None if empty else _single(given, _CONTENT_TYPE)
    seq = _single(given, names.STREAM_SEQ)
    if seq is not None and not 0 < len(seq) <= names.STREAM_SEQ_CHARS_MAX:
        raise BadRequest(
            f"invalid Stream-Seq {seq[:64]!r}: 1 to {names.STREAM_SEQ_CHARS_MAX} characters"
        )
    return Append(
        content_type=None if content_type is None else parse_content_type(content_type),
        body=b"",
        close=_closes(given),
        producer=_parse_producer(given),
        stream_seq=seq,
        if_match=_parse_precondition(given, headers),
        trace=given.get(_TRACE),  # malformed or given twice, it is as good as none
    )


def parse_create(headers: Headers, body: bytes, prefix: str) -> Create:
    """Parse a PUT.

    Args:
        prefix: where streams live; Stream-Forked-From names its source by URL path.

    Raises:
        ProtocolError: a header is given twice, malformed, or missing beside its fellows.
    """
    given = _pick(headers)
    _check_encoding(given)
    content_type = _single(given, _CONTENT_TYPE)
    source = _single(given, names.STREAM_FORKED_FROM)
    offset = _single(given, names.STREAM_FORK_OFFSET)
    sub_offset = _single(given, names.STREAM_FORK_SUB_OFFSET)
    if source is None and not (offset is None and sub_offset is None):
        raise BadRequest("Stream-Fork-Offset and Stream-Fork-Sub-Offset need Stream-Forked-From")
    sub = 0 if sub_offset is None else _parse_integer(names.STREAM_FORK_SUB_OFFSET, sub_offset)
    if sub > 0 and offset is None:
        raise BadRequest("Stream-Fork-Sub-Offset needs the Stream-Fork-Offset that it counts from")
    return Create(
        content_type=None if content_type is None else parse_content_type(content_type),
        expiry=parse_expiry(
            _single(given, names.STREAM_TTL), _single(given, names.STREAM_EXPIRES_AT)
        ),
        closed=_closes(given),
        body=body,
        forked_from=None if source is None else parse_path(source, prefix),
        fork_offset=None if offset is None else check_token(offset),
        fork_sub_offset=sub,
        retention=parse_retention(
            _single(given, names.STREAM_RETENTION_AGE), _single(given, names.STREAM_RETENTION_BYTES)
        ),
    )


def _known_parameters(query: str) -> dict[str, str]:
    known: dict[str, str] = {}
    for part in query.split("&"):
        raw_name, _, raw_value = part.partition("=")
        name = unquote_plus(raw_name)
        if name not in names.KNOWN_QUERY:
            continue
        if name in known:
            raise BadRequest(f"query parameter {name!r} is given twice")
        known[name] = unquote_plus(raw_value)
    return known


def _parse_producer(given: Given) -> ProducerKey | None:
    if given.keys().isdisjoint(_PRODUCER):
        return None
    producer_id, epoch, seq = (_single(given, name) for name in _PRODUCER)
    if producer_id is None or epoch is None or seq is None:
        missing = [name for name in _PRODUCER if name not in given]
        raise BadRequest(f"producer headers come together: {', '.join(missing)} missing")
    if not 0 < len(producer_id) <= names.PRODUCER_ID_CHARS_MAX:
        bound = names.PRODUCER_ID_CHARS_MAX
        raise BadRequest(f"invalid Producer-Id {producer_id[:64]!r}: 1 to {bound} characters")
    return ProducerKey(
        producer_id,
        _parse_integer(names.PRODUCER_EPOCH, epoch),
        _parse_integer(names.PRODUCER_SEQ, seq),
    )


def _parse_precondition(given: Given, headers: Headers) -> IfMatch | None:
    if _IF_MATCH not in given:
        return None
    value = given[_IF_MATCH]
    # A list may come in several lines (RFC 9110 §5.3).
    return parse_if_match(value if value is not None else _joined(headers, _IF_MATCH) or "")


def _parse_integer(name: str, text: str) -> int:
    if _INTEGER.fullmatch(text) is None or int(text) > names.INTEGER_MAX:
        raise BadRequest(f"invalid {name} {text[:64]!r}: an integer from 0 to {names.INTEGER_MAX}")
    return int(text)


def _closes(given: Given) -> bool:
    if names.STREAM_CLOSED not in given:
        return False
    value = given[names.STREAM_CLOSED]
    if value is None:
        raise _twice(names.STREAM_CLOSED)
    # §4.1: any case of "true"; every other value is as if the header were not there.
    return value.lower() == "true"


def _check_encoding(given: Given) -> None:
    """Refuse a body that is not what it stands for."""
    if _CONTENT_ENCODING not in given:
        return
    encoding = given[_CONTENT_ENCODING]
    if encoding is None:
        raise _twice(_CONTENT_ENCODING)
    if encoding.strip().lower() not in ("", "identity"):
        raise UnsupportedEncoding(encoding[:64])


def _pick(headers: Headers) -> Given:
    """Return the headers that the rules know. One pass: each look-up by name costs as much."""
    given: dict[str, str | None] = {}
    for name, value in headers.items():
        known = _KNOWN.get(name.lower())
        if known is not None:
            given[known] = None if known in given else value
    return given


def _single(given: Given, name: str) -> str | None:
    if name not in given:
        return None
    value = given[name]
    if value is None:
        raise _twice(name)
    # Bytes that are not UTF-8 arrive as lone surrogates, which could be stored by no one.
    if not value.isascii() and not value.isprintable():
        raise BadRequest(f"header {name} is not printable UTF-8: {value[:64]!a}")
    return value


def _twice(name: str) -> BadRequest:
    return BadRequest(f"header {name} is given twice")


def _joined(headers: Headers, name: str) -> str | None:
    values = headers.getall(name, ())
    return ", ".join(values) if values else None


def _long_path(received: int) -> BadRequest:
    return BadRequest(f"path of {received} bytes is over the limit of {names.PATH_BYTES_MAX}")
