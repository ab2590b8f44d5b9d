"""Frames of the Unix-socket bus: length, kind, body (pure)."""

import struct
from collections.abc import Iterator
from enum import Enum
from typing import Final

import orjson

from shared.interest import BATCH_PATHS_MAX
from shared.protocol.names import PATH_BYTES_MAX
from shared.wake import ForeignWake, Wake, decode_wake, encode_wake

_HEAD: Final = struct.Struct(">IB")  # bytes of the body; kind
_PATH: Final = struct.Struct(">H")  # bytes of the path, before path and wake

# The largest is a full batch of the longest paths, of which JSON may make six times as much.
FRAME_BYTES_MAX: Final = BATCH_PATHS_MAX * (6 * PATH_BYTES_MAX + 3) + 2


class BrokenFrame(Exception):
    """The other end does not speak this protocol."""


class Kind(Enum):
    """What a frame says."""

    SUBSCRIBE = ord("+")  # edge to origin: JSON array of paths
    UNSUBSCRIBE = ord("-")  # the same
    DONE = ord("=")  # origin to edge: the array of a command that is done
    WAKE = ord("!")  # origin to edge: path and wake


def encode_frame(kind: Kind, body: bytes) -> bytes:
    """Return a frame."""
    assert len(body) <= FRAME_BYTES_MAX
    return _HEAD.pack(len(body), kind.value) + body


def encode_paths(paths: list[str]) -> bytes:
    """Return the body of a command, and of the frame that says that it is done."""
    return orjson.dumps(paths)


def decode_paths(body: bytes) -> list[str]:
    """Return the paths of a command.

    Raises:
        BrokenFrame: the body is no array of strings.
    """
    try:
        paths = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BrokenFrame(f"paths that do not parse: {body[:32]!r}") from error
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise BrokenFrame(f"no array of paths: {body[:32]!r}")
    return paths


def encode_wake_frame(path: str, wake: Wake) -> bytes:
    """Return a wake of a stream as a frame."""
    name = path.encode()
    return encode_frame(Kind.WAKE, _PATH.pack(len(name)) + name + encode_wake(wake))


def decode_wake_body(body: bytes) -> tuple[str, Wake]:
    """Return stream and wake of a frame.

    Raises:
        ForeignWake: it holds none, or one of another version.
    """
    if len(body) < _PATH.size:
        raise ForeignWake(f"not a wake: {body!r}")
    start = _PATH.size + _PATH.unpack_from(body)[0]
    try:
        path = body[_PATH.size : start].decode()
    except UnicodeDecodeError as error:
        raise ForeignWake(f"path is no UTF-8: {body[:32]!r}") from error
    return path, decode_wake(body[start:])


class Frames:
    """Bytes in, in any pieces; whole frames out."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Kind, bytes]]:
        """Yield the frames that data completes, as (kind, body).

        Raises:
            BrokenFrame: a kind is unknown or a length is over the bound.
        """
        self._rest += data
        start = 0
        try:
            while len(self._rest) - start >= _HEAD.size:
                size, kind = _HEAD.unpack_from(self._rest, start)
                if size > FRAME_BYTES_MAX:
                    raise BrokenFrame(f"frame of {size} bytes")
                end = start + _HEAD.size + size
                if len(self._rest) < end:
                    break
                body = bytes(self._rest[start + _HEAD.size : end])
                start = end
                yield _kind(kind), body
        finally:
            del self._rest[:start]


def _kind(value: int) -> Kind:
    try:
        return Kind(value)
    except ValueError:
        raise BrokenFrame(f"frame of unknown kind {value}") from None
