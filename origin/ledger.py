"""Ledger: what a commit made durable becomes visible, then announced, then indexed."""

from collections.abc import Callable
from dataclasses import dataclass

from origin.catalog import Catalog
from origin.commit import Commit
from origin.journal import Batch, Extent
from origin.reader import Reader
from origin.stream import Stream
from shared.wake import Wake

Publish = Callable[[str, Wake], None]


@dataclass(slots=True)
class _Move:
    """A stream that one commit moves, and where its tail was before."""

    stream: Stream
    before: int
    size: int = 0  # bytes added
    payload: bytes | None = b""  # the same, if a wake may carry them


class Ledger:
    """Follows commits; knows what the index has yet to learn."""

    def __init__(
        self,
        catalog: Catalog,
        reader: Reader,
        publish: Publish,
        carried_bytes: int,
        lsn: int,
        changed: set[int],
        deleted: list[int],
    ) -> None:
        """Take over what recovery found.

        Args:
            carried_bytes: what a wake carries at most.
            lsn: the last durable frame.
            changed: incarnations that the index does not hold as they are.
            deleted: incarnations that the index still holds.
        """
        self._catalog = catalog
        self._reader = reader
        self._publish = publish
        self._carried_bytes = carried_bytes
        self._moves: dict[int, _Move] = {}
        self._dirty = {incarnation: catalog.by_incarnation[incarnation] for incarnation in changed}
        self._deleted = deleted
        self.lsn = lsn

    def move(self, stream: Stream, before: int) -> None:
        """Note that the commit that is being made visible moves a stream.

        Args:
            before: its tail before the change.
        """
        incarnation = stream.state.incarnation
        # The first change of a commit knows where the tail was before it; later ones keep that.
        self._moves.setdefault(incarnation, _Move(stream, before))
        self._dirty[incarnation] = stream

    def note(self, stream: Stream) -> None:
        """Note that the index should learn something of a stream that no commit tells."""
        self._dirty[stream.state.incarnation] = stream

    def drop(self, stream: Stream) -> None:
        """Note that a stream is durably deleted."""
        self._dirty.pop(stream.state.incarnation, None)
        self._deleted.append(stream.state.incarnation)

    def on_commit(self, commit: Commit) -> None:
        """Take in where the data lies, wake those who wait here, announce to those elsewhere."""
        self.lsn = commit.lsn
        moves, self._moves = self._moves, {}
        for placement in commit.placements:
            move = moves[placement.incarnation]
            start = move.before + move.size
            extent = Extent(start, commit.lsn, placement.at, placement.sizes, placement.crc)
            move.stream.extents.append(extent)
            payload = commit.payload(placement)
            self._reader.remember(extent, payload)
            move.size += len(payload)
            # What a wake may carry fits into one extent: this is all of it, or too much.
            move.payload = payload if move.size <= self._carried_bytes else None
        for move in moves.values():
            self._announce(move)
            move.stream.waiters.wake()

    def take_batch(self) -> Batch | None:
        """Return all that the index has to learn, or None; `applied` or `put_back` must follow."""
        if not self._dirty and not self._deleted:
            return None
        batch = Batch(self.lsn, self._catalog.next_incarnation)
        dirty, self._dirty = self._dirty, {}
        batch.deleted, self._deleted = self._deleted, []
        for incarnation, stream in dirty.items():
            if stream.durable is None or stream.gone:
                continue
            batch.streams.append((stream.durable, stream.touched_ms))
            batch.extents += ((incarnation, extent) for extent in stream.extents)
            batch.producers += ((incarnation, *entry) for entry in stream.dirty_producers.items())
            stream.dirty_producers = {}
        return batch

    def applied(self, batch: Batch) -> None:
        """Forget what the index holds now."""
        for _, extent in batch.extents:
            self._reader.forget(extent)
        for incarnation in {incarnation for incarnation, _ in batch.extents}:
            stream = self._catalog.by_incarnation.get(incarnation)
            if stream is not None:
                stream.extents = [e for e in stream.extents if e.lsn > batch.lsn]

    def put_back(self, batch: Batch) -> None:
        """Take back a batch that the index could not take; it goes with the next one."""
        self._deleted += batch.deleted
        by_incarnation = self._catalog.by_incarnation
        for state, _ in batch.streams:
            if state.incarnation in by_incarnation:
                self._dirty[state.incarnation] = by_incarnation[state.incarnation]
        for incarnation, key, producer in batch.producers:
            if incarnation in by_incarnation:
                # What has become durable meanwhile is newer.
                by_incarnation[incarnation].dirty_producers.setdefault(key, producer)

    def _announce(self, move: _Move) -> None:
        state = move.stream.durable
        assert state is not None
        wake = Wake(
            state.incarnation,
            state.offset_at(move.before).token(),
            state.tail_offset().token(),
            closed=state.closed,
            deleted=state.deleted,
            payload=move.payload,
        )
        self._publish(state.path, wake)
