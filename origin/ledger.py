"""Ledger: what a commit made durable becomes visible, then announced, then indexed."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from origin.catalog import Catalog
from origin.commit import Commit
from origin.journal import Batch, Extent
from origin.reader import Reader
from origin.recover import Recovered
from origin.stream import Stream
from origin.usage import NOTHING, Usage, on_trim, service_of
from shared.wake import Wake

# They cannot leave memory before the index has them, and collecting them takes the loop 2 µs each.
_BATCH_STREAMS: Final = 2000
# Where nearly every append goes to another stream, a batch costs the same whenever it is applied,
# and the loop has to share the interpreter with it: 12 ms of work for so many. Where appends return
# to their streams, waiting spares writing these again.
_SCATTERED_STREAMS: Final = 500
_SCATTERED_MOVES: Final = 1.1  # of each, at most: it is 1.4 where 1,000 streams are appended to
# Each is one of a kind, so nothing is saved by waiting for more; and commits wait for the disk
# while the index writes: 4 ms for so many that go, 20 ms for four times as many.
_BATCH_DELETED: Final = 500
# The journal empties its log behind each batch, beside commits. What is left of it when it is full,
# a quarter at most, is copied while commits wait; and until then payloads stay in memory.
_BATCH_BYTES: Final = 16 * 1024 * 1024

Publish = Callable[[str, Wake], None]


@dataclass(slots=True)
class _Move:
    """A stream that one commit moves, and where its tail was before."""

    stream: Stream
    before: int
    size: int = 0  # bytes added
    payload: bytes | None = b""  # the same, if a wake may carry them
    trace: str | None = None  # of the last of its appends that is traced


class Ledger:
    """Follows commits; knows what the index has yet to learn."""

    def __init__(
        self,
        catalog: Catalog,
        reader: Reader,
        publish: Publish | None,
        carried_bytes: int,
        found: Recovered,
    ) -> None:
        """Take over what recovery found.

        Args:
            publish: announces to those elsewhere; None: there is nobody.
            carried_bytes: what a wake carries at most.
        """
        self._catalog = catalog
        self._reader = reader
        self._publish = publish
        self._carried_bytes = carried_bytes
        self._moves: dict[int, _Move] = {}
        self._dirty: dict[int, Stream] = {}
        self._deleted = list(found.deleted)
        self._forks = dict(found.forks)
        self._looks: dict[int, int | None] = dict(found.looks)
        self._usage = found.usage
        self._frames = found.frames  # lsn, bytes of payload
        self._new_bytes = 0  # of payload, since the last batch was taken
        self._new_moves = 0  # of streams, by commits since then
        self._applying: Batch | None = None
        self.lsn = found.lsn
        self.enough = asyncio.Event()  # set when there is a batch worth applying at once
        for stream in found.streams.values():
            self.note(stream)

    def move(self, stream: Stream, before: int, counted: Usage = NOTHING) -> None:
        """Note that the commit that is being made visible moves a stream.

        Args:
            before: its tail before the change.
            counted: what the change counts.
        """
        incarnation = stream.state.incarnation
        # The first change of a commit knows where the tail was before it; later ones keep that.
        if incarnation not in self._moves:
            self._moves[incarnation] = _Move(stream, before)
        self.note(stream)
        self._count(stream, counted)

    def trace(self, stream: Stream, span: str) -> None:
        """Note the span of an append whose move was just noted; the wake takes it along."""
        self._moves[stream.state.incarnation].trace = span

    def trim(self, stream: Stream, size: int) -> None:
        """Note that size bytes of a stream's own are durably not kept any more."""
        self.note(stream)
        self._count(stream, on_trim(size))

    def look_at(self, stream: Stream, due_ms: int | None) -> None:
        """Note when there may be something to trim; None: not before somebody says so."""
        self._looks[stream.state.incarnation] = due_ms
        self.note(stream)

    def note(self, stream: Stream) -> None:
        """Note that the index should learn something of a stream that no commit tells."""
        self._dirty[stream.state.incarnation] = stream
        stream.dirty = True

    def count_fork(self, source: Stream, by: int) -> None:
        """Note that a stream has durably got a fork, or lost one."""
        source.durable_forks += by
        self._forks[source.state.incarnation] = source.durable_forks
        self.note(source)

    def drop(self, stream: Stream) -> None:
        """Note that a stream is durably deleted."""
        incarnation = stream.state.incarnation
        self._dirty.pop(incarnation, None)
        self._forks.pop(incarnation, None)
        self._looks.pop(incarnation, None)
        self._deleted.append(incarnation)
        self._catalog.drop(stream)

    def uncounted(self, lsn: int) -> Iterator[tuple[str, Usage]]:
        """Yield what services' counts change by that the index did not hold as of an lsn."""
        yield from self._usage.items()
        if self._applying is not None and self._applying.lsn > lsn:
            yield from self._applying.usage.items()

    def on_commit(self, commit: Commit) -> None:
        """Take in where the data lies, wake those who wait here, announce to those elsewhere."""
        self.lsn = commit.lsn
        payload_bytes = 0
        moves, self._moves = self._moves, {}
        for placement, payload in zip(commit.frame.placements, commit.frame.payloads, strict=True):
            move = moves[placement.incarnation]
            start = move.before + move.size
            extent = Extent(
                start, commit.lsn, placement.at, placement.sizes, placement.crc, commit.at_ms
            )
            move.stream.extents.append(extent)
            self._reader.remember(extent, payload)
            move.size += len(payload)
            payload_bytes += len(payload)
            # What a wake may carry fits into one extent: this is all of it, or too much.
            move.payload = payload if move.size <= self._carried_bytes else None
        self._frames.append((commit.lsn, payload_bytes))
        for move in moves.values():
            if self._publish is not None:
                self._publish(*_news(move))
            move.stream.waiters.wake()
        self._new_bytes += payload_bytes
        self._new_moves += len(moves)
        if (
            len(self._dirty) >= _BATCH_STREAMS
            or len(self._deleted) >= _BATCH_DELETED
            or self._new_bytes >= _BATCH_BYTES
        ):
            self.enough.set()

    @property
    def scattered(self) -> bool:
        """Whether there are several streams to apply, and nothing is saved by waiting for more."""
        dirty = len(self._dirty)
        return dirty >= _SCATTERED_STREAMS and self._new_moves <= _SCATTERED_MOVES * dirty

    @property
    def behind(self) -> int:
        """How many durable frames the index lacks, but for those of a batch on its way."""
        return len(self._frames)

    def take_batch(self) -> Batch | None:
        """Return all that the index has to learn, or None; `applied` or `put_back` must follow."""
        self.enough.clear()
        self._new_bytes = self._new_moves = 0
        if not (self._dirty or self._deleted or self._frames):
            return None
        batch = Batch(self.lsn, self._catalog.next_incarnation)
        dirty, self._dirty = self._dirty, {}
        batch.deleted, self._deleted = self._deleted, []
        batch.forks, self._forks = self._forks, {}
        batch.looks, self._looks = self._looks, {}
        batch.usage, self._usage = self._usage, {}
        batch.frames, self._frames = self._frames, []
        for incarnation, stream in dirty.items():
            if stream.durable is None or stream.gone:
                continue
            batch.streams.append((stream.durable, stream.touched_ms))
            batch.extents += ((incarnation, extent) for extent in stream.extents)
            batch.producers += ((incarnation, *entry) for entry in stream.dirty_producers.items())
            stream.dirty_producers = {}
            if stream.durable.low and not stream.durable_forks:
                batch.trims[incarnation] = stream.durable.low
        self._applying = batch
        return batch

    def applied(self, batch: Batch) -> None:
        """Forget what the index holds now."""
        self._applying = None
        by_incarnation = self._catalog.by_incarnation
        for _, extent in batch.extents:
            self._reader.forget(extent)
        for state, _ in batch.streams:
            stream = by_incarnation.get(state.incarnation)
            if stream is not None:
                stream.extents = [e for e in stream.extents if e.lsn > batch.lsn]
                stream.dirty = state.incarnation in self._dirty
        self._catalog.unlisted(batch.deleted)
        self._catalog.make_room(len(batch.streams))

    def put_back(self, batch: Batch) -> None:
        """Take back a batch that the index could not take; it goes with the next one."""
        self._applying = None
        self._new_moves += 2 * len(batch.streams)  # there is no hurry while there is no room
        self._deleted += batch.deleted
        self._frames[:0] = batch.frames
        by_incarnation = self._catalog.by_incarnation
        for state, _ in batch.streams:
            if state.incarnation in by_incarnation:
                self._dirty[state.incarnation] = by_incarnation[state.incarnation]
        for incarnation, key, producer in batch.producers:
            if incarnation in by_incarnation:
                # What has become durable meanwhile is newer.
                by_incarnation[incarnation].dirty_producers.setdefault(key, producer)
        for incarnation, forks in batch.forks.items():
            if incarnation in by_incarnation:
                self._forks.setdefault(incarnation, forks)
        for incarnation, due_ms in batch.looks.items():
            if incarnation in by_incarnation:
                self._looks.setdefault(incarnation, due_ms)
        for service, usage in batch.usage.items():
            self._usage.setdefault(service, Usage()).add(usage)

    def _count(self, stream: Stream, counted: Usage) -> None:
        service = service_of(stream.state.path)
        usage = self._usage.get(service)
        if usage is None:
            usage = self._usage[service] = Usage()
        usage.add(counted)


def _news(move: _Move) -> tuple[str, Wake]:
    """Return which path moves, and what is to be told of it."""
    state = move.stream.durable
    assert state is not None
    return state.path, Wake(
        state.incarnation,
        state.offset_at(move.before).token(),
        state.tail_offset().token(),
        closed=state.closed,
        deleted=state.deleted,
        payload=move.payload,
        trace=move.trace,
    )
