"""MemoryJournal: the contract in its shortest form, for tests and for what may be lost."""

from collections.abc import Iterable, Iterator, Sequence

from origin.frame import CorruptLog
from origin.journal import Batch, Extent, Stored
from shared.protocol.producer import ProducerState
from shared.protocol.stream import StreamState


class MemoryJournal:
    """Keeps everything, until the process ends."""

    def __init__(self) -> None:
        self._frames: dict[int, bytes] = {}
        self._applied = (0, 1)
        self._streams: dict[int, tuple[StreamState, int]] = {}
        self._producers: dict[int, dict[str, ProducerState]] = {}
        self._extents: dict[int, dict[int, Extent]] = {}

    def append(self, lsn: int, frame: bytes) -> None:
        assert lsn == len(self._frames) + 1
        self._frames[lsn] = frame

    def applied(self) -> tuple[int, int]:
        return self._applied

    def stored(self) -> Iterator[Stored]:
        for incarnation, (state, touched_ms) in sorted(self._streams.items()):
            yield Stored(state, touched_ms, self._producers.get(incarnation, {}))

    def frames(self, after: int) -> Iterator[tuple[int, bytes]]:
        for lsn in range(after + 1, len(self._frames) + 1):
            yield lsn, self._frames[lsn]

    def apply(self, batch: Batch) -> None:
        self._streams.update({s.incarnation: (s, touched) for s, touched in batch.streams})
        for incarnation, key, producer in batch.producers:
            self._producers.setdefault(incarnation, {})[key] = producer
        for incarnation, extent in batch.extents:
            self._extents.setdefault(incarnation, {})[extent.start] = extent
        for incarnation in batch.deleted:
            for table in (self._streams, self._producers, self._extents):
                table.pop(incarnation, None)
        self._applied = (batch.lsn, batch.next_incarnation)

    def extents(self, incarnation: int, start: int, end: int) -> list[Extent]:
        held = sorted(self._extents.get(incarnation, {}).items())
        return [extent for _, extent in held if extent.end > start and extent.start < end]

    def read(self, places: Sequence[tuple[int, int, int]]) -> Iterable[bytes]:
        for lsn, at, size in places:
            piece = self._frames.get(lsn, b"")[at : at + size]
            if len(piece) != size:
                raise CorruptLog(f"frame {lsn} ends before byte {at + size}")
            yield piece

    def close(self) -> None:
        """Nothing is held."""
