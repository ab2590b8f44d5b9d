"""StreamState: what a stream is; and the decisions to create it, or to find it as it was asked
for."""

from dataclasses import dataclass

from shared.protocol import media, names
from shared.protocol.errors import Conflict, Gone, InvalidOffset, Trimmed
from shared.protocol.expiry import NEVER, Expiry
from shared.protocol.offset import Offset, Start
from shared.protocol.producer import ProducerKey
from shared.protocol.retention import KEEP_ALL, Retention


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A stretch of data that a fork inherits: positions up to `until`, of another stream."""

    incarnation: int
    until: int


@dataclass(frozen=True, slots=True)
class ForkPoint:
    """Where a fork diverges, as it was asked for and as it was found."""

    source_path: str
    source: int  # incarnation
    position: int
    asked_offset: str | None  # as the client wrote it; None: the tail of then
    asked_sub_offset: int
    inherits_expiry: bool = False


@dataclass(frozen=True, slots=True)
class StreamState:
    """All that decides what happens next to a stream, but for its producers."""

    path: str
    incarnation: int
    content_type: str
    expiry: Expiry
    created_ms: int
    fork: ForkPoint | None = None
    lineage: tuple[Ancestor, ...] = ()  # oldest first; `until` never falls
    tail: int = 0  # position after the last byte, inherited ones counted
    closed: bool = False
    closed_by: ProducerKey | None = None
    last_seq: str | None = None
    deleted: bool = False  # softly: kept for its forks (PROTOCOL §4.2)
    retention: Retention = KEEP_ALL
    low: int = 0  # the earliest position that is kept, an append boundary; inherited ones count

    @property
    def base(self) -> int:
        """Position at which the stream's own data begins."""
        return self.lineage[-1].until if self.lineage else 0

    def grown(
        self, size: int, *, closed: bool, closed_by: ProducerKey | None, last_seq: str | None
    ) -> "StreamState":
        """Return the state after an append of size bytes; spelt out, for `replace` is twice as
        slow."""
        return StreamState(
            self.path,
            self.incarnation,
            self.content_type,
            self.expiry,
            self.created_ms,
            self.fork,
            self.lineage,
            self.tail + size,
            closed,
            closed_by,
            last_seq,
            self.deleted,
            self.retention,
            self.low,
        )

    def offset_at(self, position: int) -> Offset:
        """Return the one offset of a position.

        Inherited positions keep the offsets of the source (PROTOCOL §8), up to the fork point
        itself.
        """
        for ancestor in self.lineage:
            if position <= ancestor.until:
                return Offset(ancestor.incarnation, position)
        return Offset(self.incarnation, position)

    @property
    def kept(self) -> int:
        """How many bytes of the stream's own are kept."""
        return self.tail - max(self.base, self.low)

    def tail_offset(self) -> Offset:
        """Return the offset after the last byte."""
        return self.offset_at(self.tail)

    def position_of(self, start: Offset | Start) -> int:
        """Return where a read from start begins, at most the tail.

        One past the tail counts as the tail: a Yjs provider adds 1 to an offset to step over a
        message.

        Raises:
            Trimmed: what followed the offset is not kept any more.
            Gone: the offset belongs to an earlier life of this path.
            InvalidOffset: no life of this path has minted it.
        """
        if start is Start.BEGINNING:
            return self.low
        if start is Start.NOW:
            return self.tail
        assert isinstance(start, Offset)
        low = 0
        for owner in (*self.lineage, Ancestor(self.incarnation, self.tail)):
            if owner.incarnation == start.incarnation:
                if low <= start.position <= owner.until + 1:
                    if start.position < self.low:
                        raise Trimmed(start.token(), self.offset_at(self.low).token())
                    return min(start.position, self.tail)
                raise InvalidOffset(
                    f"offset {start.token()} is none of this stream's: it has positions"
                    f" {low} to {owner.until} of that life, and its tail is"
                    f" {self.tail_offset().token()}"
                )
            low = owner.until
        if start.incarnation < self.incarnation:
            raise Gone(f"offset {start.token()} belongs to an earlier stream at this path")
        raise InvalidOffset(f"offset {start.token()} was never minted for this stream")


@dataclass(frozen=True, slots=True)
class Create:
    """A request to create a stream, or to ensure that it exists as described (PROTOCOL §5.1)."""

    content_type: str | None  # None: the default, or the source's
    expiry: Expiry
    closed: bool
    body: bytes
    forked_from: str | None = None
    fork_offset: str | None = None
    fork_sub_offset: int = 0
    retention: Retention = KEEP_ALL


def ensure_same(state: StreamState, asked: Create) -> None:
    """Refuse a create at a path in use, unless it describes the stream that is there (PROTOCOL
    §5.1).

    What a fork request leaves out it inherits, so it cannot differ in that.

    Raises:
        Conflict: names the first difference.
    """
    if state.deleted:
        raise Conflict(f"the stream at {state.path!r} is deleted, and kept for its forks")
    inherits = asked.forked_from is not None
    content_type = asked.content_type or (
        state.content_type if inherits else names.DEFAULT_CONTENT_TYPE
    )
    if not media.same_type(state.content_type, content_type):
        raise Conflict(
            f"the stream exists with content type {state.content_type!r}, asked {content_type!r}"
        )
    inherited = asked.expiry == NEVER and state.fork is not None and state.fork.inherits_expiry
    if not state.expiry.same(asked.expiry) and not inherited:
        raise Conflict(f"the stream exists with another expiry: {_spell(state.expiry)}")
    # An extension may not refuse who does not use it: the default of then is as good as any.
    if asked.retention not in (KEEP_ALL, state.retention):
        raise Conflict(f"the stream exists with another retention: {state.retention}")
    if state.closed != asked.closed:
        raise Conflict(f"the stream exists and is {'closed' if state.closed else 'open'}")
    source = state.fork.source_path if state.fork else None
    if source != asked.forked_from:
        raise Conflict(f"the stream exists, forked from {source!r}, asked {asked.forked_from!r}")
    if state.fork is not None and (asked.fork_offset, asked.fork_sub_offset) != (
        state.fork.asked_offset,
        state.fork.asked_sub_offset,
    ):
        at = state.fork.asked_offset or "the tail of its source"
        raise Conflict(
            f"the stream exists, forked at {at} and {state.fork.asked_sub_offset} beyond it"
        )


def _spell(expiry: Expiry) -> str:
    if expiry.ttl_s is not None:
        return f"Stream-TTL {expiry.ttl_s}"
    return f"Stream-Expires-At {expiry.expires_at}" if expiry.expires_at else "none"
