"""Tail: what an edge believes of the end of one stream, and the readers that wait there."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from shared.protocol import caching, jsonmode, media
from shared.protocol.chunk import Chunk
from shared.waiters import Waiters
from shared.wake import Wake

# What is kept of the newest data: readers come back for the next append a round trip late, and find
# what others got meanwhile. Beyond this they read a chunk like anybody else.
_RECENT_COUNT_MAX: Final = 64
_RECENT_BYTES_MAX: Final = 256 * 1024


@dataclass(frozen=True, slots=True, order=True)
class TailState:
    """Where a stream ends; a close is a step forward, so it needs no case of its own."""

    offset: str  # tokens compare as the positions that they name (PROTOCOL §8)
    closed: bool


# What a deletion is told as: behind every tail, so it is looked at whatever was read meanwhile.
_BEYOND: Final = TailState("~", closed=True)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Data between two offsets, the first of which is its key."""

    next: str
    body: bytes


class Tail:
    """One stream's end, as far as it is known here.

    Wakes and reads move it, only ever forward. It never says more than its upstream has made
    durable.
    """

    __slots__ = (
        "_bytes",
        "_recent",
        "behind",
        "confirmed_s",
        "content_type",
        "covered",
        "failed",
        "heard_s",
        "hint",
        "path",
        "short",
        "state",
        "ttl_s",
        "users",
        "waiters",
    )

    def __init__(self, path: str) -> None:
        self.path = path
        self.state: TailState | None = None  # None until a read has found it
        self.behind = False  # a wake has told of more: what is known is not called up to date
        self.short = False  # there is more behind it, which is being read
        self.content_type = ""
        self.ttl_s: int | None = None
        self.waiters = Waiters()
        self.users = 0
        self.covered = False  # wakes arrive, so what is known is all there is
        self.hint: TailState | None = None  # a wake told of it, nobody has seen it yet
        self.failed: Exception | None = None  # why there is nothing to follow any more
        self.confirmed_s = float("-inf")  # when the upstream was last asked
        self.heard_s = float("-inf")  # when anything was last heard of it
        self._recent: OrderedDict[str, _Piece] = OrderedDict()  # by start
        self._bytes = 0

    def after(self, offset: str) -> Chunk | None:
        """Return what follows an offset: data, an empty chunk at the tail, or None where it is
        unknown."""
        if self.state is None:
            return None
        if offset == self.state.offset:
            return None if self.short else self._chunk(offset, offset, [])
        start, pieces, size = offset, [], 0
        while (piece := self._recent.get(offset)) is not None and size < _RECENT_BYTES_MAX:
            pieces.append(piece.body)
            size += len(piece.body)
            offset = piece.next
        return self._chunk(start, offset, pieces) if pieces else None

    def on_wake(self, wake: Wake) -> bool:
        """Take in a wake; return whether the upstream must be asked what really happened."""
        told = _BEYOND if wake.deleted else TailState(wake.after, wake.closed)
        if self.state is None:
            self.hint = told if self.hint is None else max(self.hint, told)
            return False
        if wake.deleted:
            self.short = True
            return True
        if told <= self.state:
            return False
        if wake.before == self.state.offset and wake.payload is not None:
            stored = wake.payload
            body = jsonmode.wrap(stored) if media.is_json(self.content_type) else stored
            self._move(told, body if stored else None)
            return False
        self.behind = True
        return True

    def on_read(self, offset: str, chunk: Chunk) -> bool:
        """Take in what the upstream answered at an offset; return whether it must be asked
        again: at the tail that is known then, which is not the real one yet."""
        # A careless server may not say so, but behind an empty answer there is nothing.
        at_tail = chunk.at_tail or chunk.empty
        self.ttl_s = chunk.ttl_s if chunk.ttl_s is not None else self.ttl_s
        self.content_type = self.content_type or chunk.content_type
        seen = TailState(chunk.next, chunk.closed)
        if self.state is None:
            if not at_tail:
                return False  # somewhere in the middle: it says nothing of the tail
            self.state = seen
            hint, self.hint = self.hint, None
            self.waiters.wake()
            return hint is not None and hint > seen
        follows = offset == self.state.offset
        if at_tail:
            self.behind = False
        if follows and at_tail:
            self.short = False
        if seen <= self.state or not (at_tail or follows):
            return False
        self._move(seen, chunk.body if follows and not chunk.empty else None, short=not at_tail)
        return not at_tail

    def fail(self, error: Exception) -> None:
        """End it: whoever waits is told why."""
        self.failed = error
        self.waiters.wake()

    def _move(self, to: TailState, body: bytes | None, *, short: bool = False) -> None:
        assert self.state is not None
        self.short = short
        before, self.state = self.state.offset, to
        if body is not None and to.offset != before:
            self._remember(before, body)
        self.waiters.wake()

    def _remember(self, before: str, body: bytes) -> None:
        assert self.state is not None
        self._recent[before] = _Piece(self.state.offset, body)
        self._bytes += len(body)
        while len(self._recent) > _RECENT_COUNT_MAX or self._bytes > _RECENT_BYTES_MAX:
            _, oldest = self._recent.popitem(last=False)
            self._bytes -= len(oldest.body)

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
            etag=caching.etag(start, end, closed=closed),
            cache_control=caching.NO_STORE,  # live replies have their own
            ttl_s=self.ttl_s,
        )
