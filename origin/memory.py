"""MemoryJournal: the contract in its shortest form, for tests and for what may be lost."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from origin.frame import CorruptLog
from origin.journal import CUTS, Batch, Deadline, Extent, Overdue, Stored
from origin.usage import Usage
from shared.protocol.producer import ProducerState
from shared.protocol.retention import Stretch
from shared.protocol.stream import StreamState


class MemoryJournal:
    """Keeps everything, until the process ends."""

    def __init__(self) -> None:
        self._frames: dict[int, bytes] = {}
        self._applied = (0, 1)
        self._streams: dict[int, tuple[StreamState, int]] = {}
        self._producers: dict[int, dict[str, ProducerState]] = {}
        self._extents: dict[int, dict[int, Extent]] = {}
        self._forks: dict[int, int] = {}
        self._usage: dict[str, Usage] = {}
        self._looks: dict[int, int] = {}

    def append(self, lsn: int, frame: Sequence[bytes]) -> None:
        assert lsn == len(self._frames) + 1
        self._frames[lsn] = b"".join(frame)

    def applied(self) -> tuple[int, int]:
        return self._applied

    def stored(self) -> Iterator[Stored]:
        yield from (self._stored(incarnation) for incarnation in sorted(self._streams))

    def find(self, path: str) -> Stored | None:
        found = (n for n, (state, _) in self._streams.items() if state.path == path)
        incarnation = next(found, None)
        return None if incarnation is None else self._stored(incarnation)

    def load(self, incarnation: int) -> Stored | None:
        return self._stored(incarnation) if incarnation in self._streams else None

    def page(self, prefix: str, after: str, limit: int) -> list[Stored]:
        found = [Stored(s.state, s.touched_ms, {}, s.forks) for s in self.stored()]
        found = [s for s in found if s.state.path.startswith(prefix) and s.state.path > after]
        return sorted(found, key=lambda stored: stored.state.path)[:limit]

    def due(self, now_ms: int, after: Deadline, limit: int) -> list[Deadline]:
        ends = (
            (deadline_ms, incarnation)
            for incarnation, (state, touched_ms) in self._streams.items()
            if (deadline_ms := state.expiry.deadline_ms(touched_ms)) is not None
            and not state.deleted
        )
        return sorted(end for end in ends if end[0] <= now_ms and end > after)[:limit]

    def overdue(self, now_ms: int, after: Deadline, limit: int) -> list[Overdue]:
        ends = sorted((due_ms, n) for n, due_ms in self._looks.items() if due_ms <= now_ms)
        return [
            Overdue(
                end,
                [
                    Stretch(extent.end, extent.at_ms)
                    for start, extent in sorted(self._extents.get(end[1], {}).items())
                    if start >= self._streams[end[1]][0].low
                ][:CUTS],
            )
            for end in ends
            if end > after
        ][:limit]

    def usage(self, after: str, limit: int) -> tuple[int, list[tuple[str, Usage]]]:
        services = (entry for entry in sorted(self._usage.items()) if entry[0] > after)
        return self._applied[0], list(islice(services, limit))

    def total(self) -> Usage:
        total = Usage()
        for usage in self._usage.values():
            total.add(usage)
        return total

    def frames(self, after: int) -> Iterator[tuple[int, bytes]]:
        for lsn in range(after + 1, len(self._frames) + 1):
            yield lsn, self._frames[lsn]

    def apply(self, batch: Batch) -> None:
        for incarnation in batch.deleted:
            for table in (self._streams, self._producers, self._extents, self._forks, self._looks):
                table.pop(incarnation, None)
        self._streams.update({s.incarnation: (s, touched) for s, touched in batch.streams})
        self._forks.update(batch.forks)
        for incarnation, key, producer in batch.producers:
            self._producers.setdefault(incarnation, {})[key] = producer
        for incarnation, extent in batch.extents:
            self._extents.setdefault(incarnation, {})[extent.start] = extent
        for incarnation, low in batch.trims.items():
            held = self._extents.get(incarnation, {})
            for start in [start for start, extent in held.items() if extent.end <= low]:
                del held[start]
        self._looks.update({n: due_ms for n, due_ms in batch.looks.items() if due_ms is not None})
        for incarnation in (n for n, due_ms in batch.looks.items() if due_ms is None):
            self._looks.pop(incarnation, None)
        for service, usage in batch.usage.items() if batch.lsn > self._applied[0] else ():
            self._usage.setdefault(service, Usage()).add(usage)
        self._applied = (batch.lsn, batch.next_incarnation)

    def extents(self, incarnation: int, start: int, end: int) -> list[Extent]:
        held = sorted(self._extents.get(incarnation, {}).items())
        return [extent for _, extent in held if extent.end > start and extent.start < end]

    def compact(self) -> bool:
        return False

    def read(self, places: Sequence[tuple[int, int, int]]) -> Iterable[bytes]:
        for lsn, at, size in places:
            piece = self._frames.get(lsn, b"")[at : at + size]
            if len(piece) != size:
                raise CorruptLog(f"frame {lsn} ends before byte {at + size}")
            yield piece

    def close(self) -> None:
        """Nothing is held."""

    def _stored(self, incarnation: int) -> Stored:
        producers = dict(self._producers.get(incarnation, {}))
        return Stored(*self._streams[incarnation], producers, self._forks.get(incarnation, 0))
