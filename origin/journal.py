"""Journal contract: what each call promises, and when it is durable."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from origin.usage import Usage
from shared.protocol.producer import ProducerState
from shared.protocol.retention import Stretch
from shared.protocol.stream import StreamState


class DiskFull(Exception):
    """There is no room; nothing of the frame was kept, and the next one may succeed."""


class JournalFailed(Exception):
    """It is not known what is on disk. The process must stop; only recovery can tell."""


@dataclass(slots=True)
class Extent:
    """A stretch of one stream that lies contiguously in one frame, or in a pack of such stretches.

    Compaction puts it elsewhere, and beside its neighbours; start and sizes never change by that.
    """

    start: int  # position in the stream
    lsn: int  # of the frame that holds it; below 0: the number of the pack, negated
    at: int  # byte position in there
    sizes: tuple[int, ...]  # one per append: every sum is an append boundary
    crc: int
    at_ms: int = 0  # when the newest of its appends was made, Unix milliseconds

    @property
    def end(self) -> int:
        """Position after the last byte."""
        return self.start + sum(self.sizes)


@dataclass(frozen=True, slots=True)
class Stored:
    """A stream as the index holds it."""

    state: StreamState
    touched_ms: int
    producers: Mapping[str, ProducerState]
    forks: int = 0  # streams that inherit from it


# What one look at a stream sees of its beginning: 1,000 extents are up to 256 MB.
CUTS: Final = 1000

# When a stream is over (Unix milliseconds), and which: what the index sorts them by.
Deadline = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Overdue:
    """A stream in which there may be something to trim, and how what it keeps of its own begins."""

    due: Deadline
    stretches: Sequence[Stretch]  # at most CUTS


@dataclass(slots=True)
class Batch:
    """What the index learns at once: the state after frame `lsn`, of all that changed since the
    last."""

    lsn: int
    next_incarnation: int
    streams: list[tuple[StreamState, int]] = field(default_factory=list)  # with touched_ms
    producers: list[tuple[int, str, ProducerState]] = field(default_factory=list)
    extents: list[tuple[int, Extent]] = field(default_factory=list)
    deleted: list[int] = field(default_factory=list)
    forks: dict[int, int] = field(default_factory=dict)  # by incarnation, where the number changed
    usage: dict[str, Usage] = field(default_factory=dict)  # what services' counts change by
    frames: list[tuple[int, int]] = field(default_factory=list)  # lsn, bytes of payload
    # Positions, by incarnation: the extents that end there or before are not needed any more.
    trims: dict[int, int] = field(default_factory=dict)
    # When there may be something to trim, Unix milliseconds, by incarnation; None: never.
    looks: dict[int, int | None] = field(default_factory=dict)


class Journal(Protocol):
    """The log that makes decisions durable, and the index that is applied behind it.

    `append` is called by one thread only, `apply` by one other; what asks, by any.
    """

    def append(self, lsn: int, frame: Sequence[bytes]) -> None:
        """Make a frame durable: when this returns, no crash undoes it.

        Args:
            frame: its bytes, in pieces.

        Raises:
            DiskFull: nothing was kept.
            JournalFailed: anything else.
        """
        ...

    def applied(self) -> tuple[int, int]:
        """Return the last lsn that the index holds, and the next incarnation as of then."""
        ...

    def stored(self) -> Iterator[Stored]:
        """Yield every stream of the index."""
        ...

    def find(self, path: str) -> Stored | None:
        """Return the stream of the index at a path."""
        ...

    def load(self, incarnation: int) -> Stored | None:
        """Return one stream of the index."""
        ...

    def page(self, prefix: str, after: str, limit: int) -> list[Stored]:
        """Return streams of the index whose paths begin with a prefix and follow another path.

        In the order of paths, at most limit of them, without their producers.
        """
        ...

    def due(self, now_ms: int, after: Deadline, limit: int) -> list[Deadline]:
        """Return which streams of the index are over by now: the first ones that follow a
        deadline."""
        ...

    def overdue(self, now_ms: int, after: Deadline, limit: int) -> list[Overdue]:
        """Return streams of the index in which there may be something to trim by now: the first
        ones that follow a deadline."""
        ...

    def usage(self, after: str, limit: int) -> tuple[int, list[tuple[str, Usage]]]:
        """Return the counts of services that follow another, in order, and up to which lsn."""
        ...

    def total(self) -> Usage:
        """Return the counts of all services together."""
        ...

    def frames(self, after: int) -> Iterator[tuple[int, bytes]]:
        """Yield the frames after an lsn, in order, without a gap.

        Raises:
            CorruptLog: a frame is missing or unreadable.
        """
        ...

    def apply(self, batch: Batch) -> None:
        """Bring the index up to batch.lsn, in one transaction; durable when this returns.

        Raises:
            DiskFull: nothing was applied.
            JournalFailed: anything else.
        """
        ...

    def extents(self, incarnation: int, start: int, end: int) -> list[Extent]:
        """Return the indexed extents that hold any of the positions [start, end), in order."""
        ...

    def compact(self) -> bool:
        """Move what is scattered together, and give back the space of what nobody needs: some of
        it.

        Called by one thread only, which may be another than that of `append` and `apply`. Nothing
        that a reader can tell changes, but `read` may not find what was moved after `extents`.

        Returns:
            Whether there is more to do at once.

        Raises:
            DiskFull: some of it was done, or nothing.
            JournalFailed: anything else.
        """
        ...

    def read(self, places: Sequence[tuple[int, int, int]]) -> Iterable[bytes]:
        """Return the bytes at (lsn, at, size) each.

        Raises:
            CorruptLog: a frame is not there, or shorter.
        """
        ...

    def close(self) -> None:
        """Let go of all files, leaving nothing to replay that could be applied."""
        ...
