"""Server-sent events, in pieces as they come (PROTOCOL §5.8)."""

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass

import orjson

from deploy.client.failures import BadAnswer

# Far above the chunk of any server we know; a line or event without end stops here.
EVENT_BYTES_MAX = 64 << 20


class EventParser:
    """Events out of bytes that may be cut anywhere; an event that is cut short is dropped."""

    _END = re.compile(rb"\r\n|\n|\r(?=.)", re.DOTALL)  # a final CR may be half of a CRLF

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._name = ""
        self._lines: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> Iterator[tuple[str, bytes]]:
        """Yield (name, data) of every event that piece completes.

        Raises:
            BadAnswer: an event is longer than EVENT_BYTES_MAX.
        """
        self._buffer += piece
        start = 0
        for end in self._END.finditer(self._buffer, self._searched):
            yield from self._line(bytes(self._buffer[start : end.start()]))
            start = end.end()
        del self._buffer[:start]
        self._searched = max(0, len(self._buffer) - 1)
        if self._size + len(self._buffer) > EVENT_BYTES_MAX:
            raise BadAnswer(f"the server sent an event of more than {EVENT_BYTES_MAX} bytes")

    def _line(self, line: bytes) -> Iterator[tuple[str, bytes]]:
        if not line:
            if self._lines:
                yield self._name, b"\n".join(self._lines)
            self._name, self._lines, self._size = "", [], 0
            return
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            self._name = value.decode("utf-8", "replace")
        elif field == b"data":
            self._lines.append(value)
            self._size += len(value)


@dataclass(frozen=True, slots=True)
class Control:
    """What a control event says of the data before it."""

    next_offset: str
    cursor: str | None
    up_to_date: bool
    closed: bool


def parse_control(data: bytes) -> Control:
    """Parse the data of a control event.

    Raises:
        BadAnswer: it does not tell the next offset.
    """
    try:
        control = orjson.loads(data)
        next_offset, cursor = control["streamNextOffset"], control.get("streamCursor")
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
        raise BadAnswer("the server sent a control event without streamNextOffset") from error
    closed = control.get("streamClosed") is True
    return Control(
        next_offset=str(next_offset),
        cursor=None if cursor is None else str(cursor),
        up_to_date=closed or control.get("upToDate") is True,
        closed=closed,
    )


def decoded(data: bytes) -> bytes:
    """Decode the payload of a base64 data event, which may be spread over lines.

    Raises:
        BadAnswer: it is not base64.
    """
    try:
        return base64.b64decode(data.replace(b"\n", b""), validate=True)
    except binascii.Error as error:
        raise BadAnswer("the server sent a data event that is not base64") from error
