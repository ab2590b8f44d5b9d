"""JSON mode (PROTOCOL §9.1): one level is flattened on append, an array is wrapped around on read.

A JSON stream stores its messages as they came, each followed by a comma. So an array is flattened
by taking its brackets off, a read is an array by putting brackets on, and nothing is ever
re-encoded:
numbers, key order and white space inside messages survive byte for byte.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Final

import orjson

from shared.protocol.errors import InvalidJson

_SPACE = b" \t\r\n"
# How deep orjson follows, which keeps the stack it recurses on small; an array that is read counts.
_DEPTH_MAX: Final = 1024
# Of one append. To find a fault orjson makes an object of each, of up to 100 bytes: 100 MB, for as
# long as it looks, which is half a second.
_VALUES_MAX: Final = 1024 * 1024
_VALUE_BYTES_MIN: Final = 2  # a digit and a comma
_NEAR_CHARS: Final = 24  # of the body, shown beside what is wrong
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_EMPTY = re.compile(rb"[ \t\r\n]*+(?:\[[ \t\r\n]*+\][ \t\r\n]*+)?")
# What can end a message or hide the end of one: strings whole, brackets, and commas between.
# Possessive: a string that is backtracked into costs 100 bytes a character.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{},]', re.DOTALL)


def flatten(body: bytes, *, allow_empty: bool = False) -> bytes:
    """Return the stored form of one append's messages.

    Args:
        allow_empty: whether `[]` is fine; it is when a stream is created (PROTOCOL §9.1.3).

    Raises:
        InvalidJson: not UTF-8, not JSON, nested deeper than 1,024, more than 1,048,576 values, or
        an empty array.
    """
    if len(body) > _VALUES_MAX * _VALUE_BYTES_MIN:
        _check_values(body)
    value = _parse(body)
    text = body.strip(_SPACE)
    if not isinstance(value, list):
        if text.count(b"[") + text.count(b"{") >= _DEPTH_MAX:
            _parse(b"[" + text + b"]")  # as a read puts an array around it
        return text + b","
    if not value:
        if allow_empty:
            return b""
        raise InvalidJson("an empty JSON array appends nothing")
    return text[1:-1].strip(_SPACE) + b","


def _parse(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidJson(_told(body, error)) from None


def _told(body: bytes, error: orjson.JSONDecodeError) -> str:
    """Say what is wrong, where, and what stands there."""
    try:
        text = body.decode()
    except UnicodeDecodeError as bad:
        found = body[bad.start : bad.start + _NEAR_CHARS]
        return f"invalid JSON: not UTF-8 at byte {bad.start}: {found!r}"
    found_text = text[error.pos : error.pos + _NEAR_CHARS]
    return f"invalid JSON: {error.msg} at character {error.pos}: {found_text!r}"


def _check_values(body: bytes) -> None:
    """Refuse more values than memory should be made of at once."""
    if _count_values(body) > _VALUES_MAX:  # at most: texts may hold such characters, too
        found = _count_values(_STRING.sub(b"", body))
        if found > _VALUES_MAX:
            raise InvalidJson(
                f"{found} JSON values in one append; at most {_VALUES_MAX} are taken at once"
            )


def _count_values(text: bytes) -> int:
    return text.count(b",") + text.count(b"[") + text.count(b"{")


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
