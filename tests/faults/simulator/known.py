"""What is known of one stream: bytes that somebody was given or promised, never guessed."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from shared.protocol.expiry import Expiry
from shared.protocol.producer import ProducerKey
from shared.protocol.stream import StreamState


class Violation(AssertionError):
    """The server broke a promise."""


def insist(holds: bool, what: str) -> None:
    """Say what is wrong, unless it holds."""
    if not holds:
        raise Violation(what)


class Moment(NamedTuple):
    """When something was asked: what was known before it, the answer must respect."""

    ms: int
    tick: int


class Status(Enum):
    """What is known of a write."""

    PENDING = auto()
    ACKNOWLEDGED = auto()  # and never to be seen missing again
    REFUSED = auto()  # and never to be seen
    UNKNOWN = auto()  # the process died first: it may have happened, once
    KEPT = auto()  # it had happened
    LOST = auto()  # it had not, and never will by itself
    FADED = auto()  # a create: if it had, the time of what it made is over


@dataclass(slots=True, eq=False)
class Op:
    """A write whose bytes tell it from all others; its retries are the same one."""

    number: int
    path: str
    body: bytes
    stored: bytes  # what of it a stream holds
    content_type: str
    close: bool = False
    producer: ProducerKey | None = None
    seq: str | None = None
    source: str | None = None  # path, for a fork
    expiry: Expiry | None = None  # of a create
    status: Status = Status.PENDING
    attempts: int = 0
    doubtful: bool = False  # an earlier attempt may have happened
    repeated: bool = False  # the server has said that it had happened before
    stream: int | None = None  # incarnation, once known
    within: Known | None = None  # the stream that was there when it was last sent
    fork_of: int | None = None  # incarnation of that source, when it was sent
    fork_at: tuple[int, int | None] = (0, None)  # least and most position of its point, then


@dataclass(slots=True, eq=False)
class Known:
    """One stream, from its creation to its end."""

    number: int  # incarnation
    path: str
    state: StreamState | None = None  # the last one that was told
    made_by: Op | None = None
    content: bytearray = field(default_factory=bytearray)
    mask: bytearray = field(default_factory=bytearray)  # 0xff where content is known
    tail: int = 0  # at least
    closed_at: int | None = None  # tick at which it was known to be closed
    deleted_at: int | None = None  # tick at which its end was acknowledged, or seen
    deleting: int = 0  # deletions that may have happened
    low_ms: int = 0  # last touch, at least
    durable_low_ms: int = 0  # the same, by what a crash cannot undo
    high_ms: int = 0  # last touch, at most
    ends: set[int] = field(default_factory=set)  # append boundaries of its own

    def learn(self, start: int, data: bytes, who: str) -> None:
        """Take in bytes at a position: what was known before, they must not contradict."""
        end = start + len(data)
        if not data:
            return
        if len(self.content) < end:
            more = bytes(end - len(self.content))
            self.content += more
            self.mask += more
        known = int.from_bytes(self.content[start:end], "big")
        mask = int.from_bytes(self.mask[start:end], "big")
        if (known ^ int.from_bytes(data, "big")) & mask:
            raise Violation(
                f"{who}: other bytes at {start} to {end} of {self}:"
                f" {bytes(self.content[start:end])!r:.120}, now {data!r:.120}"
            )
        self.content[start:end] = data
        self.mask[start:end] = b"\xff" * len(data)
        self.tail = max(self.tail, end)

    def stretch(self, start: int, end: int) -> bytes | None:
        """Return bytes, if all of them are known."""
        if end > len(self.mask) or self.mask[start:end].count(0xFF) != end - start:
            return None
        return bytes(self.content[start:end])

    def agree(self, other: Known, end: int) -> None:
        """Insist that another stream begins with the same bytes, as far as both are known."""
        end = min(end, len(self.mask), len(other.mask))
        mine, theirs, my_mask, their_mask = (
            int.from_bytes(part[:end], "big")
            for part in (self.content, other.content, self.mask, other.mask)
        )
        insist(not (mine ^ theirs) & my_mask & their_mask, f"{self} does not begin as {other}")

    @property
    def closed(self) -> bool:
        return self.closed_at is not None

    @property
    def deleted(self) -> bool:
        return self.deleted_at is not None

    def may_be_deleted(self) -> bool:
        return self.deleted or self.deleting > 0

    def may_be_over(self, now_ms: int) -> bool:
        """Tell whether its time may have run out."""
        if self.state is None:
            return True
        deadline = self.state.expiry.deadline_ms(self.low_ms)
        return deadline is not None and now_ms >= deadline

    def must_be_over(self, now_ms: int) -> bool:
        """Tell whether its time has run out for certain."""
        if self.state is None:
            return False
        deadline = self.state.expiry.deadline_ms(self.high_ms)
        return deadline is not None and now_ms >= deadline

    def __str__(self) -> str:
        return f"{self.path!r} (incarnation {self.number})"
