"""Wire: replies of the rules as the bytes of HTTP/1.1, for connections that aiohttp does not
write."""

from datetime import UTC, datetime
from functools import lru_cache
from http import HTTPStatus
from typing import Final

from shared.protocol.reply import COMMON_HEADERS, Reply

_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}
_COMMON: Final = "".join(f"{name}: {value}\r\n" for name, value in COMMON_HEADERS.items()).encode()
_NO_BODY: Final = (204, 304)
STREAM_END: Final = b"0\r\n\r\n"


def encode_head(reply: Reply, now_ms: int, *, keep_alive: bool) -> bytes:
    """Return status line and headers of a reply whose body is `reply.body`."""
    length = "" if reply.status in _NO_BODY else f"Content-Length: {len(reply.body)}\r\n"
    return _head(reply, length, now_ms, keep_alive=keep_alive)


def encode_reply(reply: Reply, now_ms: int, *, keep_alive: bool) -> bytes:
    """Return a whole reply as one piece: for many readers, or a small body."""
    return encode_head(reply, now_ms, keep_alive=keep_alive) + reply.body


def encode_stream_head(reply: Reply, now_ms: int) -> bytes:
    """Return the head of an event stream: its length is not known, its end is an empty frame."""
    return _head(reply, "Transfer-Encoding: chunked\r\n", now_ms, keep_alive=False)


def encode_frame(events: bytes) -> bytes:
    """Return one frame of an event stream (RFC 9112 §7.1)."""
    return b"%x\r\n%b\r\n" % (len(events), events)


def _head(reply: Reply, framing: str, now_ms: int, *, keep_alive: bool) -> bytes:
    own = "".join([f"{name}: {value}\r\n" for name, value in reply.headers.items()])
    closing = "" if keep_alive else "Connection: close\r\n"
    # An upstream may refuse with any status; the reason may be empty, its space may not be missing.
    reason = _REASONS.get(reply.status, "")
    text = f"HTTP/1.1 {reply.status} {reason}\r\n{own}{framing}{closing}"
    # Content types come back as they were given: UTF-8, as aiohttp writes headers.
    return text.encode("utf-8", "surrogateescape") + _COMMON + _date(now_ms // 1000)


@lru_cache(maxsize=1)
def _date(now_s: int) -> bytes:
    """Return the Date header, and the empty line that ends the head."""
    # strftime would use the names of the process's locale.
    at = datetime.fromtimestamp(now_s, UTC)
    day, month = _DAYS[at.weekday()], _MONTHS[at.month - 1]
    return f"Date: {day}, {at:%d} {month} {at:%Y %H:%M:%S} GMT\r\n\r\n".encode()


_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = (
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
)  # fmt: skip
