"""Forks: where they diverge, and the ranges of other streams that a forked read stitches (PROTOCOL
§4.2)."""

from dataclasses import dataclass

from shared.protocol import jsonmode, media
from shared.protocol.errors import BadRequest
from shared.protocol.stream import Ancestor, StreamState


@dataclass(frozen=True, slots=True)
class Range:
    """Positions [start, end) that are stored under one incarnation."""

    incarnation: int
    start: int
    end: int


def lineage_of(source: StreamState, point: int) -> tuple[Ancestor, ...]:
    """Return what a fork of source at point inherits, oldest first."""
    kept = [ancestor for ancestor in source.lineage if ancestor.until < point]
    cut = next((a for a in source.lineage if a.until >= point), None)
    owner = cut.incarnation if cut is not None else source.incarnation
    return (*kept, Ancestor(owner, point))


def ranges(state: StreamState, start: int, end: int) -> list[Range]:
    """Return where the positions [start, end) of a stream are stored, in order."""
    found = []
    owners = [*state.lineage, Ancestor(state.incarnation, max(end, state.tail))]
    for owner in owners:
        until = min(owner.until, end)
        if start < until:
            found.append(Range(owner.incarnation, start, until))
            start = until
    return found


def sub_offset_bytes(content_type: str, following: bytes, sub_offset: int) -> int:
    """Return how many bytes past the anchor a fork diverges.

    Args:
        following: stored bytes of the append after the anchor; none at the tail.
        sub_offset: messages in JSON mode, bytes otherwise.

    Raises:
        BadRequest: it goes past the next append boundary.
    """
    if sub_offset == 0:
        return 0
    if not media.is_json(content_type):
        if sub_offset > len(following):
            raise _overshoot(sub_offset, len(following), "bytes")
        return sub_offset
    ends = list(jsonmode.message_ends(following))
    if sub_offset > len(ends):
        raise _overshoot(sub_offset, len(ends), "messages")
    return ends[sub_offset - 1]


def _overshoot(asked: int, there: int, what: str) -> BadRequest:
    return BadRequest(
        f"Stream-Fork-Sub-Offset {asked} goes past the next boundary, {there} {what} away"
    )
