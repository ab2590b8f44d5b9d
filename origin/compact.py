"""Compaction: small appends of a stream into whole stretches, and space back from what is dead.

A frame holds whatever one commit brought, so what a slow stream was given lies in as many frames as
there were appends. Compaction goes through frames once, oldest first, copies the small extents of
each stream into packs, side by side, and leaves frames of which nothing is needed to be removed:

1. copy: extents are read, verified, joined, and written to `packs.db` as one row a pack, durably,
   then read back and verified again.
2. switch: one transaction of the index puts the joined extents in the place of the old ones, those
   that are still there. A crash before it leaves a pack that nobody names, which the next start
   removes; a crash after it leaves frames that nobody needs, which the index counts as dead.
3. remove: frames and packs that are dead are deleted, each database by its own writer.

No offset and no boundary moves: a joined extent has the sizes of all its appends. An extent that is
large already stays in its frame, for at 80 MB/s a second copy of everything would be more than the
disk takes; its frame lives on, until less than half of it is needed and the rest moves too. What
went to a pack is joined again with what follows, while that at least doubles it: each byte is
copied a few times at most, and a stream has few stretches, however slowly it came.

Commits go on beside all that. `journal.db` has one writer, which removal borrows for a few
milliseconds at a time; packs and index are written by nobody who waits.
"""

import logging
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from origin.frame import CorruptLog
from origin.journal import Extent

_log = logging.getLogger(__name__)

# A read verifies whole extents: no larger than what a frame has of one stream.
EXTENT_BYTES_MAX: Final = 256 * 1024
# From here on an extent is worth a read of its own: a chunk of 1 MiB takes 32 of them.
LARGE_BYTES: Final = 32 * 1024
# What one round holds in memory: twice this, and 400 B an extent. A round of so many extents is
# 70 ms of work beside the loop, which has to ask for the interpreter after each of its system calls
# meanwhile: with 6,000 of them, one append in a hundred of 100,000 streams was late by 100 ms.
ROUND_BYTES: Final = 8 * 1024 * 1024
ROUND_EXTENTS: Final = 1_500
PACK_BYTES: Final = 1024 * 1024
# Stretches before a new one that it may be joined with: at half the size each, there are no more.
NEIGHBOURS: Final = 10


@dataclass(frozen=True, slots=True)
class Part:
    """An extent, and whose it is."""

    incarnation: int
    extent: Extent
    size: int  # of the extent: looked at over and over, and a sum each time

    @property
    def end(self) -> int:
        """Position after the last byte."""
        return self.extent.start + self.size


@dataclass(frozen=True, slots=True)
class Joined:
    """Extents that become one, in order and without a gap."""

    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Pack:
    """What one row of `packs.db` is to hold, and the extents that it makes."""

    body: bytes
    moves: tuple[tuple[Joined, Extent], ...]


def join(loose: Iterable[Part], before: Iterable[Part], spans_ms: dict[int, int]) -> list[Joined]:
    """Decide which extents become one.

    Args:
        loose: those that move, each stream's in order.
        before: packed ones that come before those, each stream's in order; they move only if that
            makes a stretch of at least twice their size.
        spans_ms: how far apart the appends of one stretch may lie, for streams whose data goes by
            age, by incarnation.
    """
    earlier: dict[int, list[Part]] = {}
    for part in before:
        earlier.setdefault(part.incarnation, []).append(part)
    joined: list[Joined] = []
    for run in _runs(loose, spans_ms):
        first = run[0]
        known = earlier.get(first.incarnation, [])
        known = [part for part in known if part.end <= first.extent.start]
        size = sum(part.size for part in run)
        while known and _fits(known[-1], run, size, spans_ms):
            run.insert(0, known.pop())
            size += run[0].size
        joined += _split(run)
    return joined


def _fits(part: Part, run: Sequence[Part], size: int, spans_ms: dict[int, int]) -> bool:
    """Tell whether a packed extent is worth joining with what follows it."""
    return (
        part.end == run[0].extent.start
        and part.size <= size
        and part.size + size <= EXTENT_BYTES_MAX
        and _near(part, run[-1], spans_ms)
    )


def _near(one: Part, other: Part, spans_ms: dict[int, int]) -> bool:
    span_ms = spans_ms.get(one.incarnation)
    return span_ms is None or other.extent.at_ms - one.extent.at_ms <= span_ms


def _runs(loose: Iterable[Part], spans_ms: dict[int, int]) -> Iterator[list[Part]]:
    """Yield stretches without a gap."""
    run: list[Part] = []
    for part in loose:
        follows = (
            run
            and part.incarnation == run[-1].incarnation
            and part.extent.start == run[-1].end
            and _near(run[0], part, spans_ms)
        )
        if run and not follows:
            yield run
            run = []
        run.append(part)
    if run:
        yield run


def _split(run: Sequence[Part]) -> Iterator[Joined]:
    """Cut a stretch into extents."""
    parts: list[Part] = []
    size = 0
    for part in run:
        if parts and size + part.size > EXTENT_BYTES_MAX:
            yield Joined(tuple(parts))
            parts, size = [], 0
        parts.append(part)
        size += part.size
    yield Joined(tuple(parts))


def verify(part: Part, data: bytes, name: str) -> None:
    """Refuse bytes that are not what was written.

    Raises:
        CorruptLog: names the file, and the frame or pack.
    """
    found, extent = zlib.crc32(data), part.extent
    if found != extent.crc or len(data) != part.size:
        raise CorruptLog(
            f"{name}: byte {extent.at}: checksum {found:08x} of {len(data)} bytes, expected"
            f" {extent.crc:08x} of {part.size} (stream {part.incarnation} at {extent.start})"
        )


def pack(
    joined: Iterable[Joined], data: dict[tuple[int, int], bytes], number: int
) -> Iterator[Pack]:
    """Yield packs of extents.

    Args:
        data: bytes of every part, by lsn and byte position.
        number: of the first pack.
    """
    pieces: list[bytes] = []
    moves: list[tuple[Joined, Extent]] = []
    at = 0
    for stretch in joined:
        body = b"".join([data[part.extent.lsn, part.extent.at] for part in stretch.parts])
        if pieces and at + len(body) > PACK_BYTES:
            yield Pack(b"".join(pieces), tuple(moves))
            pieces, moves, at, number = [], [], 0, number + 1
        extents = [part.extent for part in stretch.parts]
        sizes = tuple(size for extent in extents for size in extent.sizes)
        at_ms = max(extent.at_ms for extent in extents)
        made = Extent(extents[0].start, -number, at, sizes, zlib.crc32(body), at_ms)
        moves.append((stretch, made))
        pieces.append(body)
        at += len(body)
    if pieces:
        yield Pack(b"".join(pieces), tuple(moves))
