"""Offset tokens: what clients store, send back and compare (PROTOCOL §8)."""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

from shared.protocol import names
from shared.protocol.errors import InvalidOffset

DIGITS = 16
TOKEN = rf"[0-9]{{{DIGITS}}}_[0-9]{{{DIGITS}}}"  # the pattern of one, for whoever looks for some
_TOKEN = re.compile(TOKEN, re.ASCII)
# Printable ASCII but for what §8 forbids: , & = ? / (and a space is no part of a token).
_OPAQUE = re.compile(rf"[!-%'-+\-.0-<>@-~]{{1,{names.TOKEN_CHARS_MAX}}}", re.ASCII)


class Start(Enum):
    """Where a read starts, when it names no position."""

    BEGINNING = names.BEGINNING
    NOW = names.NOW


@dataclass(frozen=True, slots=True, order=True)
class Offset:
    """A position in one life of a stream (PROTOCOL §8)."""

    incarnation: int
    position: int  # bytes that come before it

    def token(self) -> str:
        """Return the opaque form that clients store, send back and compare."""
        return f"{self.incarnation:0{DIGITS}d}_{self.position:0{DIGITS}d}"


ZERO_TOKEN = Offset(0, 0).token()
# Where a read may begin that is no place of its own: in each life of a path it means another.
SENTINELS: Final = frozenset({names.BEGINNING, names.NOW, ZERO_TOKEN})


def check_token(text: str) -> str:
    """Return text if any server could have minted it as an offset, or a sentinel.

    An edge knows no more of offsets than this: they belong to its upstream.

    Raises:
        InvalidOffset: empty, too long, or with characters that PROTOCOL §8 forbids.
    """
    if _OPAQUE.fullmatch(text) is None:
        raise InvalidOffset(f"invalid offset {text[:64]!r}")
    return text


def parse_offset(text: str) -> Offset:
    """Parse a token of ours.

    Raises:
        InvalidOffset: text is not two groups of 16 digits.
    """
    if _TOKEN.fullmatch(text) is None:
        raise InvalidOffset(f"invalid offset {text[:64]!r}")
    incarnation, position = text.split("_")
    return Offset(int(incarnation), int(position))


def life_of(text: str) -> str | None:
    """Return what all offsets of one life of a stream begin with, which sort as their positions do;
    None if text is no token of ours, or names a place in any life."""
    return text[: DIGITS + 1] if text not in SENTINELS and _TOKEN.fullmatch(text) else None


def parse_start(text: str) -> Offset | Start:
    """Parse what a read may start from: a token, `-1`, `now`, or the all-zero token (`-1` too)."""
    if text in (names.BEGINNING, ZERO_TOKEN):
        return Start.BEGINNING
    if text == names.NOW:
        return Start.NOW
    return parse_offset(text)
