"""Which stored bytes answer a read: starts and ends on append boundaries (pure)."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from origin.journal import Extent


@dataclass(frozen=True, slots=True)
class Slice:
    """A piece of an extent."""

    extent: Extent
    skip: int  # bytes of the extent before it
    size: int

    @property
    def whole(self) -> bool:
        """Whether it is all of its extent."""
        return self.skip == 0 and self.size == self.extent.end - self.extent.start


def within(extents: Sequence[Extent], start: int, end: int) -> Sequence[Extent]:
    """Return those of many extents, in order, that hold any of the positions [start, end)."""
    first = max(bisect_right(extents, start, key=attrgetter("start")) - 1, 0)
    last = bisect_left(extents, end, key=attrgetter("start"))
    return extents[first:last]


def boundary_at_or_before(extents: Iterable[Extent], position: int, low: int) -> int:
    """Return where the append begins that holds a position, or the position if one begins there.

    Args:
        extents: in order, without gaps, covering position.
        low: where the range begins: a boundary in any case (a fork point may lie inside an append).
    """
    found = low
    for extent in extents:
        edge = extent.start
        for size in (0, *extent.sizes):
            edge += size
            if low < edge <= position:
                found = edge
    return found


def boundary_at_or_after(extents: Iterable[Extent], position: int, until: int) -> int:
    """Return the first append boundary at or after a position.

    Args:
        extents: in order, without gaps, covering position.
        until: where the range ends: a boundary in any case (a fork point may lie inside an append).
    """
    for extent in extents:
        edge = extent.start
        if edge >= position:
            return min(edge, until)
        if extent.end >= position:
            for size in extent.sizes:
                edge += size
                if edge >= position:
                    return min(edge, until)
    return until


def cut(extents: Iterable[Extent], start: int, end: int) -> list[Slice]:
    """Return the pieces that make up the positions [start, end)."""
    pieces = []
    for extent in extents:
        low, high = max(start, extent.start), min(end, extent.end)
        if low < high:
            pieces.append(Slice(extent, low - extent.start, high - low))
    assert sum(piece.size for piece in pieces) == end - start
    return pieces
