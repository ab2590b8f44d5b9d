"""Tail: what an edge believes of the end of one stream, and who waits for more of it."""

import sys
from dataclasses import dataclass
from typing import Final, Protocol

from edge.recent import PIECE_BYTES_MAX, Piece, Recent
from shared.protocol import caching, jsonmode, media
from shared.protocol.chunk import Chunk
from shared.waiters import Waiters
from shared.wake import Wake


@dataclass(frozen=True, slots=True, order=True)
class TailState:
    """Where a stream ends; a close is a step forward, so it needs no case of its own."""

    offset: str  # tokens compare as the positions that they name (PROTOCOL §8)
    closed: bool


_NEVER: Final = float("-inf")
# What a deletion is told as: behind every tail, so it is looked at whatever was read meanwhile.
_BEYOND: Final = TailState("~", closed=True)


class Listener(Protocol):
    """Who is told of news at once, beside those who wait."""

    def on_news(self) -> None:
        """The tail has moved, or there is nothing to follow any more."""
        ...


class Tail:
    """One stream's end, as far as it is known here.

    Wakes and reads move it, only ever forward. It never says more than its upstream has made
    durable. An edge may follow 100,000 streams, so what only some of them need is made when they
    do.
    """

    __slots__ = (
        "_at_end",
        "_keeper",
        "_recent",
        "_waiters",
        "content_type",
        "covered",
        "failed",
        "heard_s",
        "listener",
        "path",
        "short",
        "state",
        "told",
        "ttl_s",
        "users",
    )

    def __init__(self, path: str, recent: Recent) -> None:
        self.path = path
        self.state: TailState | None = None  # None until a read has found it
        self.told: TailState | None = None  # the furthest that a wake told of; a hint
        self.short = False  # there is more behind it, which is being read
        self.content_type = ""
        self.ttl_s: int | None = None
        self.users = 0
        self.listener: Listener | None = None
        self.covered = False  # wakes arrive, so what is known is all there is
        self.failed: Exception | None = None  # why there is nothing to follow any more
        self.heard_s = _NEVER  # when the upstream was last asked, or told of an append
        self._waiters: Waiters | None = None
        self._recent = recent
        self._keeper = recent.keeper()
        self._at_end: Chunk | None = None  # what a crowd is told that waits at the end

    async def news(self) -> None:
        """Return at the next news; callers test before, without an await between, and bound the
        wait."""
        if self._waiters is None:
            self._waiters = Waiters()
        await self._waiters.wait()

    @property
    def behind(self) -> bool:
        """Whether a wake has told of more: data that is known is not called up to date."""
        return self.told is not None and self.state is not None and self.told > self.state

    def after(self, offset: str) -> Chunk | None:
        """Return what follows an offset: data, an empty chunk at the tail, or None where it is
        unknown."""
        if self.state is None:
            return None
        if offset == self.state.offset:
            if self.short:
                return None
            if self._at_end is None:
                self._at_end = self._chunk(offset, offset, [])
            return self._at_end
        start, size = offset, 0
        pieces: list[bytes] = []
        while piece := self._recent.get(self._keeper, offset):
            size += len(piece.body)
            if pieces and size > PIECE_BYTES_MAX:
                break
            pieces.append(piece.body)
            offset = piece.next
        return self._chunk(start, offset, pieces) if pieces else None

    def on_wake(self, wake: Wake) -> bool:
        """Take in a wake; return whether the upstream must be asked what really happened."""
        told = _BEYOND if wake.deleted else TailState(wake.after, wake.closed)
        if self.state is not None and told <= self.state:
            return False
        follows = self.state is not None and wake.before == self.state.offset
        if follows and wake.payload is not None and not wake.deleted:
            stored = wake.payload
            body = jsonmode.wrap(stored) if media.is_json(self.content_type) else stored
            self._move(told, body if stored else None)
            return False
        self.told = told if self.told is None else max(self.told, told)
        self.short = self.short or wake.deleted
        return self.state is not None

    def on_read(self, offset: str, chunk: Chunk) -> bool:
        """Take in what the upstream answered at an offset; return whether it must be asked
        again: at the tail that is known then, which is not the real one yet."""
        # A careless server may not say so, but behind an empty answer there is nothing.
        at_tail = chunk.at_tail or chunk.empty
        self.ttl_s = chunk.ttl_s if chunk.ttl_s is not None else self.ttl_s
        self.content_type = self.content_type or sys.intern(chunk.content_type)
        self._at_end = None
        seen = TailState(chunk.next, chunk.closed)
        if self.state is None:
            if not at_tail:
                return False  # somewhere in the middle: it says nothing of the tail
            self.state = seen
            whole = caching.etag(offset, chunk.next, closed=False)
            if not chunk.empty and chunk.etag == whole:
                # Others may have asked at the same place meanwhile, as edges behind a shield do.
                # Only what begins just there would be the same reply once more.
                self._recent.keep(self._keeper, offset, Piece(chunk.next, chunk.body))
            self._tell()
            return self.behind
        follows = offset == self.state.offset
        if follows and at_tail:
            self.short = False
        if seen <= self.state or not (at_tail or follows):
            return False
        self._move(seen, chunk.body if follows and not chunk.empty else None, short=not at_tail)
        return not at_tail

    def fail(self, error: Exception) -> None:
        """End it: whoever waits is told why."""
        self.failed = error
        self._tell()

    def _move(self, to: TailState, body: bytes | None, *, short: bool = False) -> None:
        assert self.state is not None
        self.short = short
        self._at_end = None
        before, self.state = self.state.offset, to
        if body is not None and to.offset != before:
            self._recent.keep(self._keeper, before, Piece(to.offset, body))
        self._tell()

    def _tell(self) -> None:
        if self._waiters is not None:
            self._waiters.wake()
        if self.listener is not None:
            self.listener.on_news()

    def _chunk(self, start: str, end: str, bodies: list[bytes]) -> Chunk:
        assert self.state is not None
        # Data that a wake has already overtaken is not called up to date. An empty chunk is what a
        # reader waits with, and is.
        at_tail = end == self.state.offset and not self.short and not (bodies and self.behind)
        closed = at_tail and self.state.closed
        if len(bodies) == 1:
            body = bodies[0]
        else:
            body = jsonmode.join(bodies) if media.is_json(self.content_type) else b"".join(bodies)
        return Chunk(
            content_type=self.content_type,
            next=end,
            body=body,
            empty=not bodies,
            at_tail=at_tail,
            closed=closed,
            # An empty chunk is what a live reader waits with: no reply has a tag for that.
            etag=caching.etag(start, end, closed=closed) if bodies else None,
            cache_control=caching.NO_STORE,  # live replies have their own
            ttl_s=self.ttl_s,
        )
