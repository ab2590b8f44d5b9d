"""Reader: whole messages of a stream out of the journal, at most a chunk at a time."""

import asyncio
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from origin.extents import Slice, boundary_at_or_after, boundary_at_or_before, cut, within
from origin.frame import CorruptLog
from origin.journal import Extent, Journal
from shared.protocol.chunk import chunk_limit
from shared.protocol.fork import Range, ranges
from shared.protocol.stream import StreamState

# Reads wait for the disk, not for the processor; more threads than this only fight for the lock.
_THREADS: Final = 4
# Recent extents stay in memory: whoever follows a stream reads what was just written.
_RECENT_BYTES_MAX: Final = 64 * 1024 * 1024
_OVERHEAD_BYTES: Final = 256  # of an entry: tiny appends are not free

Recent = Callable[[int], Sequence[Extent]]


@dataclass(frozen=True, slots=True)
class Span:
    """Stored bytes from one append boundary to another."""

    start: int
    end: int
    stored: bytes


class Reader:
    """Finds and fetches what is durable."""

    def __init__(self, journal: Journal, recent: Recent, chunk_bytes: int) -> None:
        """Prepare.

        Args:
            recent: durable extents of an incarnation that the index may not have yet, in order.
        """
        self._journal = journal
        self._recent = recent
        self._chunk_bytes = chunk_bytes
        self._pool = ThreadPoolExecutor(_THREADS, "read")
        self._cache: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._cache_bytes = 0

    def remember(self, extent: Extent, payload: bytes) -> None:
        """Keep what was just written for those who follow."""
        key = (extent.lsn, extent.at)
        if key in self._cache or len(payload) > _RECENT_BYTES_MAX:
            return
        self._cache[key] = payload
        self._cache_bytes += len(payload) + _OVERHEAD_BYTES
        while self._cache_bytes > _RECENT_BYTES_MAX:
            _, oldest = self._cache.popitem(last=False)
            self._cache_bytes -= len(oldest) + _OVERHEAD_BYTES

    def forget(self, extent: Extent) -> None:
        """Let go of what the index holds now: from then on it is read from the disk."""
        payload = self._cache.pop((extent.lsn, extent.at), None)
        if payload is not None:
            self._cache_bytes -= len(payload) + _OVERHEAD_BYTES

    async def chunk(self, state: StreamState, position: int) -> Span:
        """Read from the append that holds position to the end of its chunk.

        A single append larger than a chunk comes whole, so a span holds less than a chunk and one
        append.
        """
        return await self._plan(
            state, position, lambda start: chunk_limit(start, self._chunk_bytes)
        )

    async def one_append(self, state: StreamState, position: int) -> Span:
        """Read the append that holds position."""
        return await self._plan(state, position, lambda start: start + 1)

    def close(self) -> None:
        """Let reads under way finish, and end the threads."""
        self._pool.shutdown()

    async def _plan(self, state: StreamState, position: int, limit: Callable[[int], int]) -> Span:
        recent = {
            r.incarnation: list(self._recent(r.incarnation))
            for r in ranges(state, position, state.tail)
        }
        hot = self._from_memory(state, position, limit, recent)
        if hot is not None:
            return hot
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._pool, self._from_disk, state, position, limit, recent
        )

    def _from_memory(
        self,
        state: StreamState,
        position: int,
        limit: Callable[[int], int],
        recent: dict[int, list[Extent]],
    ) -> Span | None:
        """Answer without leaving the loop, if everything asked for is recent."""
        if position >= state.tail:
            return Span(state.tail, state.tail, b"")
        own = recent.get(state.incarnation)
        if len(recent) != 1 or not own or own[0].start > position:
            return None
        start, end, pieces = _select(state, position, limit, lambda r: within(own, r.start, r.end))
        parts = []
        for piece in pieces:
            payload = self._cache.get((piece.extent.lsn, piece.extent.at))
            if payload is None:
                return None
            parts.append(payload if piece.whole else payload[piece.skip : piece.skip + piece.size])
        return Span(start, end, parts[0] if len(parts) == 1 else b"".join(parts))

    def _from_disk(
        self,
        state: StreamState,
        position: int,
        limit: Callable[[int], int],
        recent: dict[int, list[Extent]],
    ) -> Span:
        def find(wanted: Range) -> list[Extent]:
            found = self._journal.extents(wanted.incarnation, wanted.start, wanted.end)
            # The index may have caught up since `recent` was taken, and have joined some of it.
            indexed = found[-1].end if found else wanted.start
            later = within(recent[wanted.incarnation], wanted.start, wanted.end)
            return [*found, *(e for e in later if e.start >= indexed or not found)]

        start, end, pieces = _select(state, position, limit, find)
        while True:
            try:
                extents = self._read_whole(pieces)
                break
            except CorruptLog:
                # Compaction may have moved them since they were looked up: then they are elsewhere.
                before = pieces
                start, end, pieces = _select(state, position, limit, find)
                if pieces == before:
                    raise
        parts = []
        for piece, data in zip(pieces, extents, strict=True):
            found = zlib.crc32(data)
            if found != piece.extent.crc:
                raise CorruptLog(
                    f"stream {state.path!r}: frame {piece.extent.lsn}, byte {piece.extent.at}:"
                    f" checksum {found:08x}, expected {piece.extent.crc:08x}"
                )
            parts.append(data if piece.whole else data[piece.skip : piece.skip + piece.size])
        return Span(start, end, b"".join(parts))

    def _read_whole(self, pieces: Sequence[Slice]) -> Iterable[bytes]:
        """Read whole extents, whatever of them is asked for: what cannot be verified is not
        served."""
        return self._journal.read(
            [(p.extent.lsn, p.extent.at, p.extent.end - p.extent.start) for p in pieces]
        )


def _select(
    state: StreamState,
    position: int,
    limit: Callable[[int], int],
    find: Callable[[Range], Sequence[Extent]],
) -> tuple[int, int, list[Slice]]:
    """Return where a read starts and ends, and the pieces in between."""
    if position >= state.tail:
        return state.tail, state.tail, []
    start = _start(state, position, find)
    end = _end(state, limit(start), find)
    pieces = []
    for stretch in ranges(state, start, end):
        pieces += cut(find(stretch), stretch.start, stretch.end)
    return start, end, pieces


def _start(state: StreamState, position: int, find: Callable[[Range], Sequence[Extent]]) -> int:
    """Return the beginning of the append that holds a position.

    The boundary after it would lose data: a position inside an append comes from a client that
    stepped past the offset it was given, as Yjs providers do, and has nothing of that append yet.
    """
    stretch = ranges(state, position, state.tail)[0]
    low = max((a.until for a in state.lineage if a.until <= position), default=0)
    around = find(Range(stretch.incarnation, position, position + 1))
    return boundary_at_or_before(around, position, low)


def _end(state: StreamState, limit: int, find: Callable[[Range], Sequence[Extent]]) -> int:
    """Return the first boundary at or after a chunk's limit."""
    if limit >= state.tail:
        return state.tail
    stretch = ranges(state, limit, state.tail)[0]
    around = find(Range(stretch.incarnation, limit, limit + 1))
    return boundary_at_or_after(around, limit, stretch.end)
