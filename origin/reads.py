"""Reads: chunks for readers, of what is durable."""

from itertools import takewhile

from origin.catalog import Catalog, soft_deleted
from origin.commit import Committer
from origin.frame import CorruptLog
from origin.hot import HotChunks
from origin.ledger import Ledger
from origin.reader import Reader
from origin.stream import Stream
from shared.clock import Clock
from shared.protocol import caching, jsonmode, media
from shared.protocol.caching import CachePolicy, Kind
from shared.protocol.chunk import Chunk, chunk_limit
from shared.protocol.errors import NotFound
from shared.protocol.offset import Offset, Start, parse_start
from shared.protocol.stamp import stamp
from shared.protocol.stream import StreamState


class Reads:
    """The origin's Source."""

    def __init__(
        self,
        catalog: Catalog,
        committer: Committer,
        ledger: Ledger,
        reader: Reader,
        policy: CachePolicy,
        clock: Clock,
        chunk_bytes: int,
        *,
        json_offsets: bool,
    ) -> None:
        self._catalog = catalog
        self._committer = committer
        self._ledger = ledger
        self._reader = reader
        self._policy = policy
        self._clock = clock
        self._chunk_bytes = chunk_bytes
        self._json_offsets = json_offsets
        self._hot = HotChunks()

    async def head(self, path: str) -> StreamState:
        """Return what a HEAD tells; it does not renew a sliding window."""
        return (await self._visible(path))[1]

    def found(self, path: str, offset: str) -> Chunk | None:
        """Return what a read would, if it was read before and is still all there is."""
        stream = self._catalog.hot(path)
        return None if stream is None else self._hot.get(path, offset, stream.durable)

    async def read(self, path: str, offset: str) -> Chunk:
        """Read a chunk from an offset on (PROTOCOL §5.6)."""
        stream, state = await self._visible(path)
        start = parse_start(offset)
        position = state.position_of(start)
        if self._catalog.touch(stream):
            self._ledger.note(stream)
        if start is Start.NOW:
            return self._chunk(state, start, position, position, b"")
        chunk = await self._read_from(state, start, position)
        self._hot.put(offset, state, chunk)
        return chunk

    async def join(self, path: str, offset: str) -> Chunk:
        """Return what a live read starts with: what is there, or an empty chunk at the tail."""
        return await self.read(path, offset)

    async def next(self, path: str, after: Chunk) -> Chunk:
        """Wait for what follows a chunk that reached the tail; callers bound it."""
        start = parse_start(after.next)
        while True:
            stream, state = await self._visible(path)
            position = state.position_of(start)
            if position < state.tail:
                return await self._read_from(state, start, position)
            if state.closed:
                return self._chunk(state, start, position, position, b"")
            await stream.waiters.wait()

    async def _visible(self, path: str) -> tuple[Stream, StreamState]:
        """Return a stream as readers see it: durable.

        Raises:
            NotFound, Gone: it is not there, or only for its forks.
        """
        stream = self._catalog.at(path)
        if stream is None or stream.durable is None:
            # Its creation, or the deletion that it is missing by, may not be durable yet.
            await self._committer.settled()
        stream = self._catalog.find(path)
        if stream.durable is None or stream.gone:
            raise NotFound(path)
        if stream.durable.deleted:
            raise soft_deleted(path)
        if self._catalog.is_over(stream):  # its deletion may be decided, and not durable yet
            raise NotFound(path)
        return stream, stream.durable

    async def _read_from(self, state: StreamState, start: Offset | Start, position: int) -> Chunk:
        try:
            span = await self._reader.chunk(state, position)
        except (AssertionError, CorruptLog):
            stream = self._catalog.of(state.incarnation)
            if stream is None:
                raise NotFound(state.path) from None  # deleted while it was read
            if stream.state.low > state.low:
                stream.state.position_of(state.offset_at(position))  # trimmed while it was read
            raise
        begin, stored = span.start, span.stored
        if begin < position and media.is_json(state.content_type):
            # Between the messages of one append there are positions too, though no header tells
            # them.
            ends = takewhile(lambda end: begin + end <= position, jsonmode.message_ends(stored))
            skip = max(ends, default=0)
            begin, stored = begin + skip, stored[skip:]
        return self._chunk(state, start, begin, span.end, stored)

    def _chunk(
        self, state: StreamState, asked: Offset | Start, start: int, end: int, stored: bytes
    ) -> Chunk:
        at_tail = end == state.tail
        closed = at_tail and state.closed
        first, last = state.offset_at(start).token(), state.offset_at(end).token()
        kind = self._kind(state, asked, start, end)
        return Chunk(
            content_type=state.content_type,
            next=last,
            body=self._body(state, start, stored),
            empty=not stored,
            at_tail=at_tail,
            closed=closed,
            etag=caching.etag(first, last, closed=closed, last=kind is Kind.FULL_AT_TAIL),
            cache_control=self._policy.control(kind, state.expiry, self._clock.now_ms()),
            ttl_s=state.expiry.ttl_s,
            expires_at=state.expiry.expires_at,
        )

    def _body(self, state: StreamState, start: int, stored: bytes) -> bytes:
        if not media.is_json(state.content_type):
            return stored
        if self._json_offsets:
            stored = stamp(stored, start, lambda position: state.offset_at(position).token())
        return jsonmode.wrap(stored)

    def _kind(self, state: StreamState, asked: Offset | Start, start: int, end: int) -> Kind:
        if end < chunk_limit(start, self._chunk_bytes):
            return Kind.TAIL
        if end == state.tail:
            return Kind.FULL_AT_TAIL
        # Only an offset of this very life means the same bytes forever. The beginning is named
        # alike in each life of the path: kept, it would send those who read on, and are told that
        # this is gone, back to what is deleted. What a fork inherits is told apart by its path
        # alone, and that may be forked anew.
        lasting = isinstance(asked, Offset) and asked.incarnation == state.incarnation
        return Kind.FULL if lasting else Kind.TAIL
