"""What the appended bytes say about themselves, so that reading them back proves every one.

A message is `CCCCCC.SSSSSSSSSS.JJJJJJ.xxx...`: the connection that sent it, which of that
connection's appends to this stream it is, and its place within the append. Its size is fixed. An
append to a plain stream is one message; to a JSON stream, an array of them as strings.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import orjson

_NAME: Final = b"%06d.%010d."
_NAME_BYTES: Final = 18
_PLACE: Final = b"%06d."
_BLANK: Final = b"#" * _NAME_BYTES
SIZE_MIN: Final = 28  # bytes: the name, the place, and in JSON two quotes; one more to be filler
BATCH_MAX: Final = 1_000_000  # what six digits can count


class Damaged(Exception):
    """A server returned bytes that nobody appended."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How large an append is: `batch` JSON messages of `size` bytes, or plain bytes if 0."""

    size: int = 100
    batch: int = 0

    def __post_init__(self) -> None:
        """Refuse what the format cannot hold."""
        if self.size < SIZE_MIN:
            raise ValueError(
                f"expected messages of at least {SIZE_MIN} bytes, received {self.size}"
            )
        if not 0 <= self.batch <= BATCH_MAX:
            raise ValueError(f"expected a batch of 0 to {BATCH_MAX}, received {self.batch}")

    @property
    def content_type(self) -> str:
        """Return the content type of the streams."""
        return "application/json" if self.batch else "application/octet-stream"

    @property
    def messages(self) -> int:
        """Return how many messages one append brings."""
        return self.batch or 1

    @property
    def text_bytes(self) -> int:
        """Return how long a message is without the quotes of JSON."""
        return self.size - 2 if self.batch else self.size

    def texts(self) -> list[bytes]:
        """Return the messages of an append that nobody has signed yet."""
        width = self.text_bytes - _NAME_BYTES
        return [_BLANK + (_PLACE % at).ljust(width, b"x") for at in range(self.messages)]

    def template(self) -> bytes:
        """Return the body of an append that nobody has signed yet."""
        texts = self.texts()
        return b'["' + b'","'.join(texts) + b'"]' if self.batch else texts[0]

    def decode(self, body: bytes) -> bytes:
        """Return the messages of a read, one after the other."""
        return "".join(orjson.loads(body)).encode() if self.batch else body


def sign(template: bytes, connection: int, number: int) -> bytes:
    """Return the body of one append; both numbers count from 0."""
    return template.replace(_BLANK, _NAME % (connection, number))


def names(shape: Shape, pieces: Iterable[bytes]) -> Iterator[tuple[int, int]]:
    """Yield connection and number of each whole append in what a stream holds.

    Args:
        pieces: of the stream, in order; no more is held of it than one of them and one append.

    Raises:
        Damaged: an append is not, byte for byte, what its first message says it is.
    """
    blank = b"".join(shape.texts())
    before, rest = 0, b""
    for piece in pieces:
        rest += piece
        whole = len(rest) - len(rest) % len(blank)
        for at in range(0, whole, len(blank)):
            name = rest[at : at + _NAME_BYTES]
            try:
                connection, number = int(name[:6]), int(name[7:17])
            except ValueError:
                raise Damaged(f"at byte {before + at}: not a message: {name!r}") from None
            if rest[at : at + len(blank)] != sign(blank, connection, number):
                raise Damaged(f"at byte {before + at}: not what was appended as {name!r}")
            yield connection, number
        before, rest = before + whole, rest[whole:]
    if rest:
        size = before + len(rest)
        raise Damaged(f"{size} bytes are no whole number of appends of {len(blank)}")
