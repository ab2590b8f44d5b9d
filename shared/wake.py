"""Wake: the hint that an origin publishes when a stream has moved, and its codec (pure)."""

import re
import zlib
from dataclasses import dataclass
from typing import Final

import orjson

from shared.protocol.offset import parse_offset

_VERSION: Final = b"HW1 "
# A wake that carries its bytes saves every edge a read; bigger ones would only fill subscribers'
# buffers.
PAYLOAD_BYTES_MAX: Final = 4096
_TRACE: Final = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class ForeignWake(Exception):
    """A message on a wake channel that is no wake, or is damaged."""


@dataclass(frozen=True, slots=True)
class Wake:
    """What happened to a stream: never the truth, always a reason to look.

    `before` and `after` are tokens of the tail; equal when the stream was only closed or deleted.
    """

    incarnation: int
    before: str
    after: str
    closed: bool = False
    deleted: bool = False
    payload: bytes | None = None  # stored bytes from before to after; None: read them
    trace: str | None = None  # the span of the append, by W3C trace context, where it is traced


def channel_of(path: str) -> str:
    """Return the pub/sub channel of a stream."""
    return f"headwater:wake:{path}"


def encode_wake(wake: Wake) -> bytes:
    """Return a wake as one message: version, checksum, JSON head, payload."""
    carries = wake.payload is not None
    told = (wake.incarnation, wake.before, wake.after, wake.closed, wake.deleted, carries)
    # Told only where there is one: an edge that is older takes such a wake for none.
    head = orjson.dumps(told if wake.trace is None else (*told, wake.trace))
    rest = head + b"\n" + (wake.payload or b"")
    return _VERSION + b"%08x " % zlib.crc32(rest) + rest


def decode_wake(message: bytes) -> Wake:
    """Return the wake in a message.

    Raises:
        ForeignWake: not of this version, damaged, or contradicting itself.
    """
    start = len(_VERSION) + 9
    if not message.startswith(_VERSION) or len(message) < start:
        raise ForeignWake(f"not a wake: {message[:32]!r}")
    rest = message[start:]
    if message[len(_VERSION) : start] != b"%08x " % zlib.crc32(rest):
        raise ForeignWake(f"damaged wake of {len(message)} bytes")
    head, _, payload = rest.partition(b"\n")
    try:
        told, trace = orjson.loads(head), None
        if len(told) == 7:
            *told, trace = told
            if not _TRACE.fullmatch(trace):
                raise TypeError(trace)
        incarnation, before, after, closed, deleted, carries = told
        moved = parse_offset(after).position - parse_offset(before).position
        kinds = [type(value) for value in (incarnation, closed, deleted, carries)]
        if kinds != [int, bool, bool, bool]:
            raise TypeError(kinds)
    except Exception as error:
        raise ForeignWake(f"malformed wake: {head[:64]!r}") from error
    if moved < 0 or (carries and moved != len(payload)):
        raise ForeignWake(f"wake moves {moved} bytes and carries {len(payload)}")
    return Wake(incarnation, before, after, closed, deleted, payload if carries else None, trace)
