"""EdgeSource: chunks for readers, from the cache, the known tails, or one shared upstream read."""

import asyncio
from contextlib import suppress
from typing import Final

from edge.chunks import Chunks
from edge.coalesce import Coalescer
from edge.tail import Tail
from edge.tails import Tails
from edge.upstream import Refused, Upstream
from shared import metrics
from shared.clock import Clock
from shared.protocol import caching, names
from shared.protocol.chunk import Chunk
from shared.protocol.errors import Unavailable
from shared.protocol.offset import SENTINELS, life_of

# How long a kept chunk is served on the word of its last read, where no wake would tell of a
# deletion.
_UNWATCHED_S: Final = 1.0
# Reads of one place that find nothing though more is believed to be there: it may have been a race
# once. An upstream that contradicts itself is not asked over and over.
_LOOKS: Final = 3
# How soon an upstream that is away is asked again for whoever waits, unless news come before. One
# asks for all at a place, and `Upstream` bounds how many do at once.
_RETRY_S: Final = 0.5


class EdgeSource:
    """A caching proxy for the protocol; its upstream is any server of it."""

    def __init__(
        self,
        upstream: Upstream,
        tails: Tails,
        reads: Coalescer[tuple[str, str], Chunk],
        chunks: Chunks,
        clock: Clock,
    ) -> None:
        self._upstream = upstream
        self._tails = tails
        self._reads = reads
        self._chunks = chunks
        self._clock = clock

    def found(self, path: str, offset: str, *, live: bool) -> Chunk | None:
        """Return what can be answered at once, if anything can."""
        if live:
            known = self._tails.after(path, offset)
            if known is not None:
                return known
        kept = self._kept(path, offset)
        if kept is not None:
            metrics.CHUNK_HITS.inc()
        return kept

    async def read(self, path: str, offset: str) -> Chunk:
        """Answer a catch-up read: a full chunk from the cache, or a read that starts from now
        on."""
        found = self.found(path, offset, live=False)
        if found is not None:
            return found
        asked_s = self._clock.monotonic_s()
        chunk = await self._reads.get((path, offset), lambda: self._look(path, offset))
        kept = self._chunks.get(path, offset)
        if kept is None or kept.chunk is not chunk:
            # It was read for live readers, in whose flight or behind which this one came.
            self._keep(path, offset, chunk, asked_s)
        return chunk

    async def _look(self, path: str, offset: str) -> Chunk:
        """Find a chunk for all who asked for it before now."""
        await self._confirm(path, offset)
        found = self._kept(path, offset)
        if found is not None:
            return found
        kept = self._chunks.get(path, offset)
        held = None if kept is None else kept.chunk
        asked_s = self._clock.monotonic_s()
        try:
            chunk = await self._upstream.read(path, offset, held)
        except Refused as error:
            self._refused(path, offset, error)
            raise
        self._keep(path, offset, chunk, asked_s)
        first = _first(offset, chunk, held)
        if first is not None:
            self._chunks.confirm(path, first, asked_s)
        return chunk

    async def _confirm(self, path: str, offset: str) -> None:
        """Let one read confirm all that is kept of a life: who still has its earliest chunk has all
        that follows. That is true of offsets of ours only; a tag of ours shows them."""
        kept, life = self._chunks.get(path, offset), life_of(offset)
        if kept is None or life is None or self._kept(path, offset) is not None:
            return
        if caching.start_of(kept.chunk.etag) is None:
            return
        first = self._chunks.earliest(path, life)
        if first is None or first == offset:
            return
        try:
            await self._reads.get((path, first), lambda: self._look(path, first))
        except Refused as error:
            if error.status != 410:  # else that one is gone, but what is asked for may be there
                raise

    async def join(self, path: str, offset: str) -> Chunk:
        """Answer the start of a live read: from the known tail, else by one read."""
        found = self.found(path, offset, live=True)
        if found is not None:
            return found
        with self._tails.using(path) as tail:
            await self._tails.follow(tail)
            asked_s = self._clock.monotonic_s()
            chunk = await self._tails.join(tail, offset)
            self._keep(path, offset, chunk, asked_s)
            if chunk.empty:
                # Whoever waits here waits with the same chunk.
                chunk = self._tails.after(path, chunk.next) or chunk
            return chunk

    async def next(self, path: str, after: Chunk) -> Chunk:
        """Wait for what follows a chunk, for as long as it takes: an upstream that is away for a
        moment is no reason to send anyone away, and every wait has a bound of its own."""
        with self._tails.using(path) as tail:
            await self._tails.follow(tail)
            return await self._await_news(tail, after.next)

    def forget(self, path: str) -> None:
        """Let go of all that is kept of a stream: it is gone, or another one is there."""
        self._chunks.drop(path)

    def _kept(self, path: str, offset: str) -> Chunk | None:
        """Return what is kept at an offset, if that was confirmed just now."""
        kept = self._chunks.get(path, offset)
        if kept is None:
            return None
        since_s = self._clock.monotonic_s() - _UNWATCHED_S
        # Its own word first: most reads of a hot chunk need no other.
        fresh = kept.confirmed_s > since_s or self._chunks.life_confirmed_s(path, offset) > since_s
        return kept.chunk if fresh else None

    def _refused(self, path: str, offset: str, error: Refused) -> None:
        if error.status == 404:  # other refusals are of one request, and easily provoked
            self.forget(path)
        elif error.status == 410 and (life := life_of(offset)) is not None:
            earliest = error.headers().get(names.STREAM_EARLIEST_OFFSET)
            self._chunks.drop_before(path, life, earliest)

    def _keep(self, path: str, offset: str, chunk: Chunk, asked_s: float) -> None:
        if chunk.cache_control == caching.NO_STORE:
            return  # as are those that were made for live readers, who are told something else
        if offset in SENTINELS:
            # The path may be another stream's by now: it is asked about each time, and not sent
            # anew while the tag is the same.
            if offset != names.NOW and (chunk.closed or not chunk.at_tail):
                self._chunks.put(path, offset, chunk, float("-inf"))
        elif chunk.closed or "immutable" in chunk.cache_control:
            self._chunks.put(path, offset, chunk, asked_s)

    async def _await_news(self, tail: Tail, offset: str) -> Chunk:
        looked_in_vain = 0
        while True:
            if tail.failed is not None:
                raise tail.failed
            found = tail.after(offset)
            if found is None and looked_in_vain < _LOOKS:
                # Not a place that is known here: the upstream knows what follows it.
                try:
                    found = await self._tails.read(tail, offset)
                except Unavailable:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_RETRY_S):
                            await tail.news()
                    continue
                if found.empty and not found.closed:
                    offset = found.next
                    looked_in_vain += 1
                    continue
            if found is not None and (not found.empty or found.closed):
                return found
            await tail.news()
            looked_in_vain = 0


def _first(offset: str, chunk: Chunk, held: Chunk | None) -> str | None:
    """Return from which offset on a life of a stream is all there, as a reply shows; None if it
    shows nothing of what was kept before."""
    if offset == names.NOW or not (offset in SENTINELS or chunk is held):
        return None
    return caching.start_of(chunk.etag)
