"""JSON mode (PROTOCOL §9.1): one level is flattened on append, an array is wrapped around on read.

A JSON stream stores its messages as they came, each followed by a comma. So an array is flattened
by taking its brackets off, a read is an array by putting brackets on, and nothing is ever
re-encoded:
numbers, key order and white space inside messages survive byte for byte.
"""

import re
from collections.abc import Iterable, Iterator

import orjson

from shared.protocol.errors import InvalidJson

_SPACE = b" \t\r\n"
_DEPTH_MAX = 1024  # how deep orjson follows
_EMPTY = re.compile(rb"[ \t\r\n]*+(?:\[[ \t\r\n]*+\][ \t\r\n]*+)?")
# What can end a message or hide the end of one: strings whole, brackets, and commas between.
# Possessive: a string that is backtracked into costs 100 bytes a character.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{},]', re.DOTALL)


def flatten(body: bytes, *, allow_empty: bool = False) -> bytes:
    """Return the stored form of one append's messages.

    Args:
        allow_empty: whether `[]` is fine; it is when a stream is created (PROTOCOL §9.1.3).

    Raises:
        InvalidJson: not UTF-8, not JSON, nested deeper than orjson follows (1,024), or an empty
        array.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidJson(f"invalid JSON: {error}") from None
    text = body.strip(_SPACE)
    if not isinstance(value, list):
        if text.count(b"[") + text.count(b"{") >= _DEPTH_MAX:
            _check_wrapped(text)
        return text + b","
    if not value:
        if allow_empty:
            return b""
        raise InvalidJson("an empty JSON array appends nothing")
    return text[1:-1].strip(_SPACE) + b","


def _check_wrapped(text: bytes) -> None:
    """Refuse a message that could not be read back: a read puts an array around it."""
    try:
        orjson.loads(b"[" + text + b"]")
    except orjson.JSONDecodeError as error:
        raise InvalidJson(f"invalid JSON: {error}") from None


def wrap(stored: bytes) -> bytes:
    """Return the stored form of any messages as the array that a read returns."""
    return b"[" + stored[:-1] + b"]"


def join(arrays: Iterable[bytes]) -> bytes:
    """Join the bodies of consecutive reads into one array."""
    inner = (array.strip(_SPACE)[1:-1].strip(_SPACE) for array in arrays)
    return b"[" + b",".join(part for part in inner if part) + b"]"


def is_empty(array: bytes) -> bool:
    """Tell whether a body of a read holds no message."""
    return _EMPTY.fullmatch(array) is not None


def message_ends(stored: bytes) -> Iterator[int]:
    """Yield the position after each message's comma, in the order of the messages."""
    depth = 0
    for match in _TOKEN.finditer(stored):
        mark = match[0]
        if mark in (b"[", b"{"):
            depth += 1
        elif mark in (b"]", b"}"):
            depth -= 1
        elif mark == b"," and depth == 0:
            yield match.end()
