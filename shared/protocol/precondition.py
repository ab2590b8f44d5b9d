"""If-Match on an append: it has its effect only while the tail is where its writer saw it.

An extension of ours, on the terms of RFC 9110 §13.1.1. A HEAD, and every answer to a write, gives
the tail's own tag. A read that reached the tail names the same place in its tag, so that one serves
as well. Comparison is strong: a weak tag names no tail.
"""

import re
from dataclasses import dataclass
from typing import Final

from shared.protocol.errors import BadRequest
from shared.protocol.stream import StreamState

_TAG: Final = r'(?:W/)?"[^"\x00-\x20\x7f]*"'
_ITEM: Final = rf"[ \t]*(?:{_TAG}[ \t]*)?"
_LIST: Final = re.compile(rf"{_ITEM}(?:,{_ITEM})*")
_STRONG: Final = re.compile(r'(W/)?"([^"]*)"')
_SHOWN: Final = 128
_CHARS_MAX: Final = 4096  # 60 tags of ours; each is looked at


@dataclass(frozen=True, slots=True)
class IfMatch:
    """The tails that a writer takes; None: any, as long as the stream is there (`*`)."""

    tails: frozenset[str] | None

    def holds(self, state: StreamState) -> bool:
        """Tell whether the tail is one of them."""
        return self.tails is None or state.tail_offset().token() in self.tails


def tail_tag(state: StreamState) -> str:
    """Return the quoted entity tag of a stream's tail; closing the stream changes it."""
    return f'"{state.tail_offset().token()}{":c" if state.closed else ""}"'


def parse_if_match(text: str) -> IfMatch:
    """Parse the value of an If-Match header.

    Raises:
        BadRequest: it is no list of quoted tags. To take it for one that matches nothing, or
            everything, would be worse.
    """
    if text.strip() == "*":
        return IfMatch(None)
    if len(text) > _CHARS_MAX or not text.strip() or _LIST.fullmatch(text) is None:
        raise BadRequest(f"invalid If-Match {text[:_SHOWN]!r}: * or quoted entity tags")
    return IfMatch(frozenset(_tail_of(tag) for weak, tag in _STRONG.findall(text) if not weak))


def _tail_of(tag: str) -> str:
    """Return the offset at which the bytes of a tag end (`caching.etag`), or the tail it names."""
    parts = tag.split(":")
    if parts[-1] in ("c", "t"):
        parts.pop()
    return parts[-1] if parts else ""
