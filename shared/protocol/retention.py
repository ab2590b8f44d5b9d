"""How much of a stream is kept: Stream-Retention-Age, Stream-Retention-Bytes (an extension).

PROTOCOL §4 lets a server drop old data while the stream goes on, and has 410 for whoever asks for
it. It leaves open how a stream says what it keeps; these two headers of a create are ours. Data
goes from the beginning on, at append boundaries, in the stretches in which it is stored: at least
what the policy asks for is kept, and a little more.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from shared.protocol import names
from shared.protocol.errors import BadRequest

_INTEGER = re.compile(r"[1-9][0-9]{0,15}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept at least; None: everything."""

    age_s: int | None = None  # data that is not older
    bytes: int | None = None  # so many of the last bytes


KEEP_ALL = Retention()


@dataclass(frozen=True, slots=True)
class Stretch:
    """Stored data that goes as one."""

    end: int  # position after it
    at_ms: int  # when the newest of it was appended, Unix milliseconds


def parse_retention(age: str | None, size: str | None) -> Retention:
    """Parse the two headers of a create.

    Raises:
        BadRequest: one is malformed or out of range.
    """
    return Retention(
        None if age is None else _parse(names.STREAM_RETENTION_AGE, age, names.TTL_S_MAX),
        None if size is None else _parse(names.STREAM_RETENTION_BYTES, size, names.INTEGER_MAX),
    )


def low_after(
    retention: Retention, tail: int, low: int, stretches: Iterable[Stretch], now_ms: int
) -> int:
    """Return the earliest position that is to be kept.

    Args:
        low: the earliest one that is kept so far; the result is not below it.
        stretches: in order, from the beginning or from low on.
    """
    for stretch in stretches:
        old = retention.age_s is not None and stretch.at_ms + retention.age_s * 1000 <= now_ms
        many = retention.bytes is not None and tail - stretch.end >= retention.bytes
        if not (old or many):
            break
        low = max(low, stretch.end)
    return low


def is_over(retention: Retention, size: int) -> bool:
    """Tell whether a stream of size bytes holds so much that it is worth a look.

    A quarter more than asked for, so that not every append drops one.
    """
    limit = retention.bytes
    return limit is not None and size >= limit + max(limit // 4, 1)


def _parse(name: str, text: str, most: int) -> int:
    if _INTEGER.fullmatch(text) is None or int(text) > most:
        raise BadRequest(f"invalid {name} {text[:64]!r}: a whole number from 1 to {most}")
    return int(text)
